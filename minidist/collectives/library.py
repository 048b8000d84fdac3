"""The MPI library's own all-reduce: what all of ours are compared with.

It chooses an algorithm by size and rank count, as ``auto`` does, and runs it in C. Nobody can see
which, so its messages and bytes cannot be counted and it has no formula here: the trace counts such
calls in ``trace.uncounted``. There is none in the local world.
"""

from __future__ import annotations

from minidist.array import Array
from minidist.comm.comm import Comm


def all_reduce(comm: Comm, array: Array, op: str = "sum") -> None:
    """Reduce ``array`` over all ranks, in place, by MPI_Allreduce."""
    comm.library_all_reduce(array, op)
