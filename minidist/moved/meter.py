from minidist.moved import now

now("minidist.inspect.meter", __name__)
