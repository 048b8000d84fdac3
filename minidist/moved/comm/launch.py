from minidist.moved import now

now("minidist.comm.launcher", __name__)
