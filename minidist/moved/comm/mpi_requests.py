from minidist.moved import now

now("minidist.comm.mpi.comm", __name__)
