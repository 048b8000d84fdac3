"""Memory that the ranks of one machine share: MPI's shared windows."""

from __future__ import annotations

from typing import Any

import numpy as np

from minidist.comm.errors import CommError, NoSharedMemory
from minidist.comm.mpi.room import shared_memory_left
from minidist.engine.array import Array


def allocate(mpi: Any, comm: Any, length: int, like: Array) -> tuple[Any, list[np.ndarray]]:
    """An MPI window, to be kept, and in it an array of ``length`` for each rank of ``comm``.

    Raises CommError, on every rank, where ranks share no memory or too little is left.
    """
    if not isinstance(like, np.ndarray):
        raise CommError("shared() is for arrays on the host: a GPU's memory is its own")
    rank, size = comm.Get_rank(), comm.Get_size()
    node = comm.Split_type(mpi.COMM_TYPE_SHARED)
    here = node.Get_size()
    node.Free()
    if here < size:
        raise NoSharedMemory(
            f"shared(): only {here} of {size} ranks share the memory of rank "
            f"{rank}'s machine: split the communicator by machine first"
        )
    nbytes = max(1, length) * like.itemsize  # an empty array needs an address, too
    left = np.array([shared_memory_left()])
    comm.Allreduce(mpi.IN_PLACE, left, mpi.MIN)
    if left[0] < nbytes * size:
        raise NoSharedMemory(
            f"shared(): {size} ranks ask for {nbytes} bytes each, and /dev/shm has not as "
            "much left: make it larger (docker run --shm-size=1g), or choose an algorithm that "
            "sends messages, such as 'ring'"
        )
    window = mpi.Win.Allocate_shared(nbytes, 1, comm=comm)
    buffers = [window.Shared_query(rank)[0] for rank in range(size)]
    np.frombuffer(buffers[rank], np.uint8).fill(0)  # uses it now, so that the next call counts it
    comm.Barrier()
    return window, [np.frombuffer(buffer, like.dtype, length) for buffer in buffers]
