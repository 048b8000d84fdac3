from minidist.moved import now

now("minidist.engine.tape", __name__)
