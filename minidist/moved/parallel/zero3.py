from minidist.moved import now

now("minidist.parallel.zero.stage3", __name__)
