from minidist.moved import now

now("minidist.engine.recompute", __name__)
