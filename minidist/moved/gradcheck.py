from minidist.moved import now

now("minidist.engine.gradcheck", __name__)
