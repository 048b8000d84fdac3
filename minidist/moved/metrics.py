from minidist.moved import now

now("minidist.inspect.metrics", __name__)
