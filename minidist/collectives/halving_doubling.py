"""Halving and doubling: as few bytes as a ring, as few rounds as a tree (Rabenseifner's algorithm).

Two partners at distance p/2 exchange halves, and each adds one half; then they exchange quarters
with partners at distance p/4, and so on, until rank r has chunk r finished: a reduce-scatter by
recursive halving. The all-gather makes the same exchanges in reverse, by recursive doubling.

    p = 4, the chunks that each rank adds    rank 0    rank 1    rank 2    rank 3
      at first                              0 1 2 3   0 1 2 3   0 1 2 3   0 1 2 3
      distance 2: send the other half       0 1       0 1           2 3       2 3
      distance 1: send the other quarter    0           1           2           3
      all-gather, distance 1                0 1       0 1           2 3       2 3
      all-gather, distance 2                0 1 2 3   0 1 2 3   0 1 2 3   0 1 2 3

With p a power of two and n bytes

    reduce_scatter    lg p α + n(p - 1)/p·(β + γ)
    all_reduce        2 lg p α + 2n(p - 1)/p·β + n(p - 1)/p·γ

Other p are folded as in ``recursive_doubling``, which sends the whole array once more before and
after: then a ring is better for large arrays. Rabenseifner, "Optimization of collective reduction
operations", ICCS 2004, section 4; Thakur, Rabenseifner, Gropp, IJHPCA 19(1) 2005, section 4.5.
"""

from __future__ import annotations

from collections.abc import Sequence

from minidist.collectives.algorithm import algorithm
from minidist.collectives.cost import Cost
from minidist.collectives.partition import chunk_lengths, chunks, power_below
from minidist.collectives.recursive_doubling import (
    double,
    double_cost,
    fold,
    fold_cost,
    rank_of,
    unfold,
    unfold_cost,
    worker_of,
    worker_parts,
)
from minidist.comm.comm import Comm
from minidist.comm.machine import Machine
from minidist.engine.array import Array


@algorithm("halving_doubling")
def reduce_scatter(comm: Comm, array: Array, op: str = "sum") -> Array:
    """Reduce over all ranks; rank r gets chunk r of the result, in its place in ``array``.

    Returns a view of the chunk. The rest of ``array`` holds partial sums.
    """
    flat = comm.flat(array)
    parts = chunks(flat.size, comm.size)
    worker = fold(comm, flat, op)
    if worker is None:
        comm.recv(flat[parts[comm.rank]], comm.rank - 1)
    else:
        halve(comm, flat, op, worker_parts(parts), worker)
        if worker < comm.size - power_below(comm.size):
            comm.send(flat[parts[comm.rank + 1]], comm.rank + 1)
    return flat[parts[comm.rank]]


@algorithm("halving_doubling")
def all_reduce(comm: Comm, array: Array, op: str = "sum") -> None:
    """Reduce ``array`` over all ranks, in place: afterwards every rank holds the same result."""
    flat = comm.flat(array)
    parts = chunks(flat.size, power_below(comm.size))
    worker = fold(comm, flat, op)
    if worker is not None:
        halve(comm, flat, op, parts, worker)
        double(comm, flat, parts, worker)
    unfold(comm, flat)


def halve(comm: Comm, flat: Array, op: str, parts: Sequence[slice], worker: int) -> None:
    """Reduce-scatter among the workers: worker w gets ``parts[w]``."""
    first, count = 0, len(parts)  # the parts that this worker still adds
    for _ in comm.rounds("reduce-scatter", len(parts).bit_length() - 1):
        count //= 2
        partner = rank_of(worker ^ count, comm.size)
        keep, give = (first, first + count) if not worker & count else (first + count, first)
        sending = flat[parts[give].start : parts[give + count - 1].stop]
        keeping = flat[parts[keep].start : parts[keep + count - 1].stop]
        incoming = comm.scratch(keeping.size, flat)
        comm.sendrecv(sending, partner, incoming, partner)
        comm.combine(op, keeping, incoming)
        first = keep


def halve_cost(parts: list[int], itemsize: int, worker: int | None, machine: Machine) -> Cost:
    """What ``halve`` costs a worker: ``parts`` are all workers' lengths, the longest first."""
    cost = Cost(0, 0, 0.0)
    count = len(parts)
    while count > 1:
        count //= 2
        longest = sum(parts[:count]) * itemsize  # what worker 0 keeps
        seconds = machine.message(longest) + machine.reduce(longest)
        if worker is None:
            cost += Cost(0, 0, seconds)
        else:
            keep = worker // count * count
            give = keep ^ count
            sent, kept = (sum(parts[first : first + count]) * itemsize for first in (give, keep))
            cost += Cost(1, sent, seconds, kept)
    return cost


@reduce_scatter.costs
def reduce_scatter_cost(length: int, itemsize: int, rank: int, size: int, machine: Machine) -> Cost:
    """What ``reduce_scatter`` of ``length`` elements costs: the formula above."""
    lengths = chunk_lengths(length, size)
    folded = size - power_below(size)
    worker = worker_of(rank, size)
    parts = [part.stop - part.start for part in worker_parts(chunks(length, size))]
    cost = fold_cost(length * itemsize, rank, size, machine)
    cost += halve_cost(parts, itemsize, worker, machine)
    if folded:
        seconds = machine.message(lengths[1] * itemsize)
        hands = worker is not None and worker < folded
        cost += Cost(1, lengths[rank + 1] * itemsize, seconds) if hands else Cost(0, 0, seconds)
    return cost


@all_reduce.costs
def all_reduce_cost(length: int, itemsize: int, rank: int, size: int, machine: Machine) -> Cost:
    """What ``all_reduce`` of ``length`` elements costs: the formula above."""
    parts = chunk_lengths(length, power_below(size))
    worker = worker_of(rank, size)
    return (
        fold_cost(length * itemsize, rank, size, machine)
        + halve_cost(parts, itemsize, worker, machine)
        + double_cost(parts, itemsize, worker, machine)
        + unfold_cost(length * itemsize, rank, size, machine)
    )
