from minidist.moved import now

now("minidist.comm.mpi.watchdog", __name__)
