from minidist.moved import now

now("minidist.comm.local.scheduler", __name__)
