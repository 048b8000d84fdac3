from minidist.moved import now

now("minidist.inspect.graph", __name__)
