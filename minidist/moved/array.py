from minidist.moved import now

now("minidist.engine.array", __name__)
