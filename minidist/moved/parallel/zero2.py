from minidist.moved import now

now("minidist.parallel.zero.stage2", __name__)
