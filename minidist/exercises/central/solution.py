"""All-reduce by way of one rank: one right answer."""

import numpy as np


def all_reduce(comm, array):
    if comm.rank == 0:
        other = np.empty_like(array)
        for rank in range(1, comm.size):
            comm.recv(other, rank)
            array += other
        for rank in range(1, comm.size):
            comm.send(array, rank)
    else:
        comm.send(array, 0)
        comm.recv(array, 0)
