from minidist.moved import now

now("minidist.engine.mode", __name__)
