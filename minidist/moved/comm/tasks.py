from minidist.moved import now

now("minidist.comm.local.tasks", __name__)
