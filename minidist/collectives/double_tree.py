"""Double binary tree: two trees at once, so that no port rests and the depth is logarithmic.

In one binary tree half of the ranks are leaves, whose ports only send going up and only receive
coming down. So take two trees, in which nobody is inside both, and give each half of the array:

    p = 7, by places 1 to 7        first tree            second tree: all moved by one

                                       4                        3
                                     ╱   ╲                    ╱   ╲
                                    2     6                  1     5
                                   ╱ ╲   ╱ ╲                ╱ ╲   ╱ ╲
                                  1   3 5   7              7   2 4   6

A tree of 1..p has the largest power of two at its root, and the rest to its left and right. Inside
are the even places, so moving all by one swaps inside and outside. Each half goes in k pieces, up
to the root, added on the way, and down again. Now every rank sends to at most two parents and
receives from at most two children, so all edges can be given one of two colours such that nobody
sends, or receives, on two of the same colour. In even steps the one colour moves, in odd steps the
other: at most one message out and one in. Going down is the film of going up, run backward.

    messages a rank   at most 4k: k up in either tree, and 2k down in the one where it is inside
    steps S           2k - 1 and as many as the first piece needs to the root, about 2 lg p
    time              at most 2S(α + nβ/2k) + Snγ/2k: for long arrays 2nβ + nγ. Not everybody is
                      busy in every step, so ``all_reduce_cost`` follows them: exact

Between the tree's latency and the ring's bandwidth: best in the middle, on many ranks. Sanders,
Speck, Träff, "Two-tree algorithms for full bandwidth broadcast, reduction and scan", Parallel
Computing 35(12) 2009; NCCL 2.4.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from functools import lru_cache

import numpy as np

from minidist.collectives.chunks import chunk_lengths, chunks, power_below
from minidist.collectives.cost import Cost
from minidist.comm.comm import Comm
from minidist.comm.machine import Machine
from minidist.engine.array import Array

PIECE = 1 << 16  # bytes


@dataclass(frozen=True)
class Edge:
    """From a child to its parent in one of the trees; its first piece moves in step ``start``."""

    tree: int
    child: int
    parent: int
    start: int


def family(place: int, size: int) -> tuple[int, list[int]]:
    """Parent (0 for the root) and children of a place in the tree of places 1 to ``size``."""
    parent, before, count = 0, 0, size  # the subtree of the places before + 1 to before + count
    while True:
        root = before + power_below(count)
        left, right = root - 1 - before, before + count - root
        if place == root:
            children = [before + power_below(left)] if left else []
            return parent, [*children, root + power_below(right)] if right else children
        parent = root
        before, count = (before, left) if place < root else (root, right)


@lru_cache
def edges(size: int) -> list[Edge]:
    """All edges of both trees, children before parents, with the steps in which they begin."""
    pairs = []  # (tree, child, parent), as ranks
    for tree in (0, 1):
        waiting = [power_below(size)]
        order = []
        for place in waiting:  # from the root down
            children = family(place, size)[1]
            order += [(tree, (c - 1 - tree) % size, (place - 1 - tree) % size) for c in children]
            waiting += children
        pairs += order[::-1]
    colours = two_colours(pairs)
    starts: dict[tuple[int, int], int] = {}  # (tree, rank) → the step after its last child's first
    found = []
    for pair in pairs:
        tree, child, parent = pair
        start = starts.get((tree, child), 0)
        start += (start + colours[pair]) % 2  # the next step of its colour
        starts[tree, parent] = max(starts.get((tree, parent), 0), start + 1)
        found.append(Edge(tree, child, parent, start))
    return found


def two_colours(pairs: list[tuple[int, int, int]]) -> dict[tuple[int, int, int], int]:
    """Colour 0 or 1 for each (tree, child, parent): two of one child, or parent, differ.

    Edges that must differ form chains and even rings, so any can begin with 0.
    """
    touching: dict[tuple[str, int], list[tuple[int, int, int]]] = {}
    for pair in pairs:
        touching.setdefault(("sends", pair[1]), []).append(pair)
        touching.setdefault(("receives", pair[2]), []).append(pair)
    colours: dict[tuple[int, int, int], int] = {}
    for first in pairs:
        if first in colours:
            continue
        colours[first] = 0
        chain = [first]
        for pair in chain:
            for other in touching["sends", pair[1]] + touching["receives", pair[2]]:
                if other not in colours:
                    colours[other] = 1 - colours[pair]
                    chain.append(other)
    return colours


def piece_count(length: int, itemsize: int) -> int:
    """k: pieces in each half."""
    return max(1, -(-length * itemsize // (2 * PIECE)))


def step_count(size: int, k: int) -> int:
    """S: steps up, and as many down."""
    return max((edge.start for edge in edges(size)), default=-1) + 2 * k - 1 if size > 1 else 0


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
        """My edges that move in this step: to a parent, and from a child; at most one of each."""
        now = [edge for edge in mine if edge.start <= step and (step - edge.start) % 2 == 0]
        now = [edge for edge in now if (step - edge.start) // 2 < k]
        up = [edge for edge in now if edge.child == comm.rank]
        return up, [edge for edge in now if edge.parent == comm.rank]

    def piece(edge: Edge, step: int) -> Array:
        return pieces[edge.tree][(step - edge.start) // 2]

    for number in comm.rounds("reduce", steps):
        step = number - 1
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
        step = steps - number  # the same steps backward
        to_parent, from_child = moving(step)
        out = [(piece(edge, step), edge.child) for edge in from_child]
        exchange(comm, out, [(piece(edge, step), edge.parent) for edge in to_parent])


def exchange(comm: Comm, out: list[tuple[Array, int]], into: list[tuple[Array, int]]) -> None:
    """Send and receive what there is: at most one array, with its peer, each."""
    if out and into:
        comm.sendrecv(*out[0], *into[0])
    elif out:
        comm.send(*out[0])
    elif into:
        comm.recv(*into[0])


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
