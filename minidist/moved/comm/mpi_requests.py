from minidist.moved import now

now("minidist.comm.mpi.requests", __name__)
