"""The MPI library's own collectives, to compare ours with.

A library chooses an algorithm by size and rank count, as ``auto`` does, and runs it in C. It does
not say which, so messages and bytes cannot be counted and there are no formulas here; the trace
counts the calls in ``trace.uncounted``. There is no library in the local world.

Arguments are those of our own functions of the same name; ``IN_PLACE`` stands for an array that is
at its place already.
"""

from __future__ import annotations

from minidist.collectives.partition import chunk_lengths, chunks
from minidist.comm.comm import IN_PLACE, Comm
from minidist.engine.array import Array


def all_reduce(comm: Comm, array: Array, op: str = "sum") -> None:
    """Reduce ``array`` over all ranks, in place, by MPI_Allreduce."""
    comm.library("Allreduce", IN_PLACE, array, op=op)


def reduce(comm: Comm, array: Array, op: str = "sum", root: int = 0) -> None:
    """MPI_Reduce, in place at the root."""
    buffers = (IN_PLACE, array) if comm.rank == root else (array, None)
    comm.library("Reduce", *buffers, op=op, root=root)


def reduce_scatter(comm: Comm, array: Array, op: str = "sum") -> Array:
    """MPI_Reduce_scatter; returns rank r's chunk, in a work array."""
    lengths = chunk_lengths(array.size, comm.size)
    chunk = comm.scratch(lengths[comm.rank], array)
    comm.library("Reduce_scatter", array, chunk, lengths, op=op)
    return chunk


def all_gather(comm: Comm, array: Array) -> None:
    """MPI_Allgatherv, in place."""
    comm.library("Allgatherv", IN_PLACE, (array, chunk_lengths(array.size, comm.size)))


def broadcast(comm: Comm, array: Array, root: int = 0) -> None:
    """MPI_Bcast."""
    comm.library("Bcast", array, root=root)


def gather(comm: Comm, array: Array, root: int = 0) -> None:
    """MPI_Gatherv, in place."""
    whole = (array, chunk_lengths(array.size, comm.size))
    own = comm.flat(array)[chunks(array.size, comm.size)[comm.rank]]
    comm.library("Gatherv", *((IN_PLACE, whole) if comm.rank == root else (own, None)), root=root)


def scatter(comm: Comm, array: Array, root: int = 0) -> Array:
    """MPI_Scatterv, in place; returns a view of rank r's chunk."""
    whole = (array, chunk_lengths(array.size, comm.size))
    own = comm.flat(array)[chunks(array.size, comm.size)[comm.rank]]
    comm.library("Scatterv", *((whole, IN_PLACE) if comm.rank == root else (None, own)), root=root)
    return own


def all_to_all(comm: Comm, send: Array, recv: Array) -> None:
    """MPI_Alltoall: rows of equal length."""
    comm.library("Alltoall", send, recv)


def barrier(comm: Comm) -> None:
    """MPI_Barrier."""
    comm.library("Barrier")
