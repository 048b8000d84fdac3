"""Double binary tree: two trees at once, each for half of the array.

In one binary tree half of the ranks are leaves, which only send on the way up and only receive on
the way down: half of what their ports could do is lost. So take two trees over the same ranks,
such that each rank is an interior node of at most one, and send half of the array through each:

    reduce       each half, in k pieces, from the leaves to the root, added on the way
    broadcast    the same steps in reverse: the finished pieces from the root to the leaves

``two_trees.py`` builds the trees, and numbers the steps such that in each of them a rank sends at
most one message and receives at most one. An edge carries a piece in every second step. With p
ranks and n bytes

    messages a rank   at most 4k: k up in each tree, 2k down in the one where it has two children
    steps S           2k - 1, and as many as the first piece needs to the root: about 2 lg p
    time              at most 2S(α + nβ/2k) + Snγ/2k: for long arrays 2nβ + nγ

Not every rank is busy in every step, so ``all_reduce_seconds`` follows them one by one, and its
time is exact. Between a tree's latency and the ring's bandwidth: best for arrays of middle length
on many ranks. Sanders, Speck, Träff, "Two-tree algorithms for full bandwidth broadcast, reduction
and scan", Parallel Computing 35(12) 2009; NCCL 2.4.
"""

from __future__ import annotations

from dataclasses import astuple
from functools import lru_cache

import numpy as np

from minidist.collectives.algorithm import algorithm
from minidist.collectives.cost import Cost
from minidist.collectives.partition import chunk_lengths, chunks
from minidist.collectives.two_trees import Edge, edges
from minidist.comm.comm import Comm
from minidist.comm.machine import Machine
from minidist.engine.array import Array

PIECE = 1 << 16  # bytes


def piece_count(length: int, itemsize: int) -> int:
    """k: pieces in each half."""
    return max(1, -(-length * itemsize // (2 * PIECE)))


def step_count(size: int, k: int) -> int:
    """S: steps up, and as many down."""
    return max((edge.start for edge in edges(size)), default=-1) + 2 * k - 1 if size > 1 else 0


@algorithm("double_tree")
def all_reduce(comm: Comm, array: Array, op: str = "sum") -> None:
    """Reduce ``array`` over all ranks, in place: afterwards every rank holds the same result."""
    flat = comm.flat(array)
    k = piece_count(flat.size, flat.itemsize)
    pieces = [
        [flat[half][part] for part in chunks(half.stop - half.start, k)]
        for half in chunks(flat.size, 2)
    ]
    buffer = comm.scratch(pieces[0][0].size, flat)
    mine = [edge for edge in edges(comm.size) if comm.rank in (edge.child, edge.parent)]
    steps = step_count(comm.size, k)

    def moving(step: int) -> tuple[list[Edge], list[Edge]]:
        """This rank's edges that carry a piece: to a parent, from a child; one each at most."""
        now = [edge for edge in mine if edge.start <= step and (step - edge.start) % 2 == 0]
        now = [edge for edge in now if (step - edge.start) // 2 < k]
        up = [edge for edge in now if edge.child == comm.rank]
        return up, [edge for edge in now if edge.parent == comm.rank]

    def piece(edge: Edge, step: int) -> Array:
        return pieces[edge.tree][(step - edge.start) // 2]

    for number in comm.rounds("reduce", steps):
        step = number - 1  # steps count from 0
        to_parent, from_child = moving(step)
        out = [(piece(edge, step), edge.parent) for edge in to_parent]
        growing = [piece(edge, step) for edge in from_child]
        into = [
            (buffer[: own.size], edge.child) for own, edge in zip(growing, from_child, strict=True)
        ]
        exchange(comm, out, into)
        for own, (arrived, _) in zip(growing, into, strict=True):
            comm.combine(op, own, arrived)
    for number in comm.rounds("broadcast", steps):
        step = steps - number  # the same steps in reverse
        to_parent, from_child = moving(step)
        out = [(piece(edge, step), edge.child) for edge in from_child]
        exchange(comm, out, [(piece(edge, step), edge.parent) for edge in to_parent])


def exchange(comm: Comm, out: list[tuple[Array, int]], into: list[tuple[Array, int]]) -> None:
    """Send and receive at the same time: at most one (array, peer) each."""
    if out and into:
        comm.sendrecv(*out[0], *into[0])
    elif out:
        comm.send(*out[0])
    elif into:
        comm.recv(*into[0])


@all_reduce.costs
def all_reduce_cost(length: int, itemsize: int, rank: int, size: int, machine: Machine) -> Cost:
    """What ``all_reduce`` of ``length`` elements costs."""
    k = piece_count(length, itemsize)
    halves = [n * itemsize for n in chunk_lengths(length, 2)]
    messages = nbytes = reduced = 0
    for edge in edges(size):
        if rank in (edge.child, edge.parent):  # sends up as a child, down as a parent
            messages += k
            nbytes += halves[edge.tree]
            reduced += halves[edge.tree] if rank == edge.parent else 0
    return Cost(messages, nbytes, all_reduce_seconds(length, itemsize, size, machine), reduced)


@lru_cache(maxsize=1024)
def all_reduce_seconds(length: int, itemsize: int, size: int, machine: Machine) -> float:
    """When the last rank is done, exactly: the steps above with a clock for every rank.

    A message begins when both of its ranks have come to the step; in a step a rank sends one
    message and receives one, at most.
    """
    if size == 1:
        return 0.0
    k = piece_count(length, itemsize)
    nbytes = np.array([chunk_lengths(n, k) for n in chunk_lengths(length, 2)]) * itemsize
    tree, child, parent, start = np.array([astuple(edge) for edge in edges(size)]).T
    now = np.zeros(size)

    def move(step: int, senders: np.ndarray, receivers: np.ndarray) -> tuple[np.ndarray, ...]:
        """One step's messages: who received, and how much."""
        piece, waits = np.divmod(step - start, 2)
        moving = (waits == 0) & (piece >= 0) & (piece < k)
        sender, receiver = senders[moving], receivers[moving]
        size_of = nbytes[tree[moving], piece[moving]]
        end = np.maximum(now[sender], now[receiver]) + machine.message(size_of)
        now[sender] = end  # a rank sends once in a step, and receives once
        now[receiver] = np.maximum(now[receiver], end)
        return receiver, size_of

    for step in range(step_count(size, k)):
        receiver, added = move(step, child, parent)
        now[receiver] += machine.reduce(added)
    for step in reversed(range(step_count(size, k))):
        move(step, parent, child)
    return float(now.max())
