from minidist.moved import now

now("minidist.engine.seeds", __name__)
