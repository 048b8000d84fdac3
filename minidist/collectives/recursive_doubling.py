"""Recursive doubling: exchange everything with a partner twice as far away each round.

    all_reduce, p = 4          rank 0    rank 1    rank 2    rank 3
      at first                   a         b         c         d
      round 1: distance 1       a+b ←───→ a+b       c+d ←───→ c+d
      round 2: distance 2     a+b+c+d   a+b+c+d   a+b+c+d   a+b+c+d
                                 ↑─────────┼─────────↑         │
                                           ↑───────────────────↑

All ranks add the same pairs, so all get the same bits. With p a power of two and n bytes

    all_reduce    lg p (α + nβ + nγ)
    all_gather    lg p α + n(p - 1)/p·β      what is exchanged doubles too: n/p, 2n/p, ...

No all-reduce has fewer rounds: best for small arrays. Other p are folded to p', the power of two
below: the first p - p' odd ranks send their array to the even rank on their left, take no part in
the rounds, and receive the result: another α + nβ + nγ before and α + nβ after. Thakur,
Rabenseifner, Gropp, IJHPCA 19(1) 2005, sections 4.1 and 4.5.
"""

from __future__ import annotations

from collections.abc import Sequence

from minidist.collectives.algorithm import algorithm
from minidist.collectives.cost import Cost
from minidist.collectives.partition import chunk_lengths, chunks, power_below
from minidist.comm.comm import Comm
from minidist.comm.machine import Machine
from minidist.engine.array import Array


def worker_of(rank: int, size: int) -> int | None:
    """The rank's number among the p' that take part; None for one that is folded."""
    folded = size - power_below(size)
    if rank >= 2 * folded:
        return rank - folded
    return rank // 2 if rank % 2 == 0 else None


def rank_of(worker: int, size: int) -> int:
    """The rank that is this worker."""
    folded = size - power_below(size)
    return 2 * worker if worker < folded else worker + folded


def fold(comm: Comm, array: Array, op: str) -> int | None:
    """Reduce onto the working ranks; returns this rank's number among them, or None."""
    worker = worker_of(comm.rank, comm.size)
    if worker is None:
        with comm.step("fold"):
            comm.send(array, comm.rank - 1)
    elif worker < comm.size - power_below(comm.size):
        with comm.step("fold"):
            incoming = comm.scratch(array.size, array).reshape(array.shape)
            comm.recv(incoming, comm.rank + 1)
            comm.combine(op, array, incoming)
    return worker


def unfold(comm: Comm, array: Array) -> None:
    """The ranks that took part send the result to those that did not."""
    worker = worker_of(comm.rank, comm.size)
    if worker is None:
        with comm.step("unfold"):
            comm.recv(array, comm.rank - 1)
    elif worker < comm.size - power_below(comm.size):
        with comm.step("unfold"):
            comm.send(array, comm.rank + 1)


@algorithm("recursive_doubling")
def all_reduce(comm: Comm, array: Array, op: str = "sum") -> None:
    """Reduce ``array`` over all ranks, in place: afterwards every rank holds the same result."""
    worker = fold(comm, array, op)
    if worker is not None:
        incoming = comm.scratch(array.size, array).reshape(array.shape)
        distance = 1
        for _ in comm.rounds("exchange", comm.size.bit_length() - 1):
            partner = rank_of(worker ^ distance, comm.size)
            comm.sendrecv(array, partner, incoming, partner)
            comm.combine(op, array, incoming)
            distance *= 2
    unfold(comm, array)


@algorithm("recursive_doubling")
def all_gather(comm: Comm, array: Array) -> None:
    """Rank r brings chunk r of ``array``, in its place; afterwards every rank has them all."""
    flat = comm.flat(array)
    parts = chunks(flat.size, comm.size)
    folded = comm.size - power_below(comm.size)
    worker = worker_of(comm.rank, comm.size)
    if worker is None:
        comm.send(flat[parts[comm.rank]], comm.rank - 1)
    else:
        if worker < folded:
            comm.recv(flat[parts[comm.rank + 1]], comm.rank + 1)
        double(comm, flat, worker_parts(parts), worker)
    unfold(comm, flat)


def double(comm: Comm, flat: Array, parts: Sequence[slice], worker: int) -> None:
    """All-gather among the workers: worker w brings ``parts[w]``."""
    distance = 1
    for _ in comm.rounds("all-gather", len(parts).bit_length() - 1):
        mine = worker // distance * distance  # the first of the block that this worker has
        theirs = mine ^ distance
        partner = rank_of(worker ^ distance, comm.size)
        sending = flat[parts[mine].start : parts[mine + distance - 1].stop]
        receiving = flat[parts[theirs].start : parts[theirs + distance - 1].stop]
        comm.sendrecv(sending, partner, receiving, partner)
        distance *= 2


def worker_parts(parts: Sequence[slice]) -> list[slice]:
    """The chunks of all ranks, those of a folded pair as one."""
    folded = len(parts) - power_below(len(parts))
    pairs = zip(parts[0 : 2 * folded : 2], parts[1 : 2 * folded : 2], strict=True)
    return [slice(left.start, right.stop) for left, right in pairs] + [*parts[2 * folded :]]


def fold_cost(nbytes: int, rank: int, size: int, machine: Machine) -> Cost:
    """What ``fold`` of ``nbytes`` costs; nothing where p is a power of two."""
    folded = size - power_below(size)
    if not folded:
        return Cost(0, 0, 0.0)
    seconds = machine.message(nbytes) + machine.reduce(nbytes)
    worker = worker_of(rank, size)
    if worker is None:
        return Cost(1, nbytes, seconds)
    return Cost(0, 0, seconds, nbytes if worker < folded else 0)


def unfold_cost(nbytes: int, rank: int, size: int, machine: Machine) -> Cost:
    """What ``unfold`` of ``nbytes`` costs."""
    folded = size - power_below(size)
    worker = worker_of(rank, size)
    messages = 1 if worker is not None and worker < folded else 0
    return Cost(messages, messages * nbytes, machine.message(nbytes) if folded else 0.0)


@all_reduce.costs
def all_reduce_cost(length: int, itemsize: int, rank: int, size: int, machine: Machine) -> Cost:
    """What ``all_reduce`` of ``length`` elements costs: the formula above."""
    nbytes = length * itemsize
    rounds = power_below(size).bit_length() - 1
    working = rounds if worker_of(rank, size) is not None else 0
    exchange = Cost(
        working,
        working * nbytes,
        rounds * (machine.message(nbytes) + machine.reduce(nbytes)),
        working * nbytes,
    )
    fold = fold_cost(nbytes, rank, size, machine)
    return fold + exchange + unfold_cost(nbytes, rank, size, machine)


def double_cost(parts: list[int], itemsize: int, worker: int | None, machine: Machine) -> Cost:
    """What ``double`` costs a worker: ``parts`` are all workers' lengths, the longest first."""
    cost = Cost(0, 0, 0.0)
    distance = 1
    while distance < len(parts):
        seconds = machine.message(sum(parts[:distance]) * itemsize)
        if worker is None:
            cost += Cost(0, 0, seconds)
        else:
            first = worker // distance * distance
            cost += Cost(1, sum(parts[first : first + distance]) * itemsize, seconds)
        distance *= 2
    return cost


@all_gather.costs
def all_gather_cost(length: int, itemsize: int, rank: int, size: int, machine: Machine) -> Cost:
    """What ``all_gather`` to ``length`` elements costs: the formula above."""
    lengths = chunk_lengths(length, size)
    folded = size - power_below(size)
    worker = worker_of(rank, size)
    hand = Cost(0, 0, machine.message(lengths[1] * itemsize) if folded else 0.0)
    if worker is None:
        hand = Cost(1, lengths[rank] * itemsize, hand.seconds)
    parts = [part.stop - part.start for part in worker_parts(chunks(length, size))]
    unfold = unfold_cost(length * itemsize, rank, size, machine)
    return hand + double_cost(parts, itemsize, worker, machine) + unfold
