from minidist.moved import now

now("minidist.engine.tensor", __name__)
