from minidist.moved import now

now("minidist.inspect.counters", __name__)
