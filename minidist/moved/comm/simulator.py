from minidist.moved import now

now("minidist.comm.local.simulator", __name__)
