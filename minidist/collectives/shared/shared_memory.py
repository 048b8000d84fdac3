"""Shared memory: ranks of one machine read each other's data, instead of sending it.

The array goes in k segments, each cut into p parts, of which rank r adds part r. Each rank has an
inbox and an outbox that all others can read. Three ranks, one segment; rank 1 does

    1  copy in    parts 0 and 2 of its own array into its inbox           barrier
    2  add        part 1 of the inboxes of ranks 0 and 2 to its own part,
                  and copy the sum into its outbox                        barrier
    3  copy out   parts 0 and 2 from the outboxes of ranks 0 and 2

While one segment is copied out the next is added and the one after that copied in, with a single
barrier for all three. Boxes are double, so what is read is never what is being written:

    turn       0        1        2        3        4
    copy in    seg 0    seg 1    seg 2                     barrier after each turn but the last
    add                 seg 0    seg 1    seg 2
    copy out                     seg 0    seg 1    seg 2

A segment is short enough to stay in the cache for its three turns, so each array is read from and
written to main memory once, for any p. Ranks wait only in the barriers, which send empty messages:

    messages a rank   (k + 1)⌈lg p⌉, no bytes
    time              (k + 1)⌈lg p⌉α + n(p - 1)/p·γ; the model counts no time for the copies

Arrays that are allocated in memory that all see need no copies: see ``symmetric_memory.py``.
Graham, Shipman, "MPI support for multi-core architectures: optimized shared memory collectives",
EuroPVM/MPI 2008. MPI-3 calls such memory a window (Win_allocate_shared).
"""

from __future__ import annotations

import numpy as np

from minidist.collectives.algorithm import algorithm
from minidist.collectives.cost import Cost
from minidist.collectives.dissemination import barrier, barrier_cost
from minidist.collectives.partition import chunk_lengths, chunks
from minidist.comm.comm import Comm, CommError
from minidist.comm.machine import Machine
from minidist.engine.array import Array, address_of, bytes_on_host, module_of, to_host

SEGMENT = 1 << 20  # bytes: about what a core's own cache holds
LINE = 64  # bytes that caches move at once


@algorithm("shared_memory")
def all_reduce(comm: Comm, array: Array, op: str = "sum") -> None:
    """Reduce ``array`` over all ranks, in place; each part is added by one rank, for all.

    Raises CommError where not all ranks are on one machine.
    """
    if comm.size == 1:
        return
    flat = comm.flat(array)
    like = bytes_on_host(flat)
    memory, heads = comm.remember(
        ("shared memory", type(like)),
        lambda: (comm.shared(LINE + 4 * SEGMENT, like), comm.shared(3, np.empty(0, np.int64))),
    )
    heads[comm.rank][:] = flat.nbytes, kind_of(flat), shift_to(flat, memory[comm.rank])
    segments = segment_slices(flat.size, flat.itemsize)
    others = [rank for rank in range(comm.size) if rank != comm.rank]
    xp = module_of(flat)
    boxes: dict[int, list[Array]] = {}  # by rank: two inboxes, two outboxes

    def open_boxes(rank: int) -> None:
        shift = int(heads[rank][2])
        boxes[rank] = comm.remember(
            ("boxes", rank, shift, flat.dtype, type(like)),
            lambda: divide(memory[rank], shift, flat.dtype),
        )

    # An element has the same index in every box as in its segment.

    def copy_in(number: int) -> None:
        segment, inbox = flat[segments[number]], boxes[comm.rank][number % 2]
        own = chunks(segment.size, comm.size)[comm.rank]
        inbox[: own.start] = to_host(segment[: own.start])
        inbox[own.stop : segment.size] = to_host(segment[own.stop :])

    def add(number: int) -> None:
        segment, outbox = flat[segments[number]], boxes[comm.rank][2 + number % 2]
        part = chunks(segment.size, comm.size)[comm.rank]
        for rank in others:
            comm.combine(op, segment[part], xp.asarray(boxes[rank][number % 2][part]))
        outbox[part] = to_host(segment[part])

    def copy_out(number: int) -> None:
        segment = flat[segments[number]]
        parts = chunks(segment.size, comm.size)
        for rank in others:
            segment[parts[rank]] = xp.asarray(boxes[rank][2 + number % 2][parts[rank]])

    open_boxes(comm.rank)
    for turn in range(len(segments) + 2):
        if turn == 1:
            check_agreement(comm, [head[:2] for head in heads], flat, "dtype and length")
            for rank in others:
                open_boxes(rank)
        if turn < len(segments):
            copy_in(turn)
        if 1 <= turn <= len(segments):
            add(turn - 1)
        if turn >= 2:
            copy_out(turn - 2)
        if turn <= len(segments):  # after the last turn a later call's first barrier serves
            barrier(comm)


def kind_of(array: Array) -> int:
    """A number for its dtype and the order of its bytes."""
    return int(array.dtype.num if array.dtype.isnative else ~array.dtype.num)


def divide(slot: Array, shift: int, dtype: np.dtype) -> list[Array]:
    """The four boxes of a rank, each as long as a segment."""
    starts = [shift + number * SEGMENT for number in range(4)]
    return [slot[start : start + SEGMENT].view(dtype) for start in starts]


def shift_to(flat: Array, slot: Array) -> int:
    """By how many bytes to shift the boxes, so that they divide into cache lines as ``flat`` does.

    A processor can overwrite a whole line without reading it first. Where lines do not match it
    must read each line, from the cache of the core that used it last: measured, that makes copying
    in 4 times slower, and the whole 2.4 times.
    """
    if not isinstance(flat, np.ndarray):
        return 0
    return (address_of(flat) - address_of(slot)) % LINE


def check_agreement(comm: Comm, heads: list[np.ndarray], array: Array, on: str) -> None:
    """Raise CommError if ranks disagree: no message is sent that would show it, so compare."""
    if any(head.tolist() != heads[comm.rank].tolist() for head in heads):
        barrier(comm)  # all have compared, before one that catches the error goes on
        raise CommError(
            f"rank {comm.rank} reduces {array.dtype}[{array.size}], and another rank something "
            f"else: all must agree on {on}"
        )


def segment_slices(length: int, itemsize: int) -> list[slice]:
    """The segments of an array; an empty array has one, which is empty."""
    step = SEGMENT // itemsize
    return [slice(start, min(start + step, length)) for start in range(0, max(1, length), step)]


@all_reduce.costs
def all_reduce_cost(length: int, itemsize: int, rank: int, size: int, machine: Machine) -> Cost:
    """What ``all_reduce`` of ``length`` elements costs: the formula above."""
    if size == 1:
        return Cost(0, 0, 0.0)
    cost = barrier_cost(size, machine)
    for segment in segment_slices(length, itemsize):
        parts = [n * itemsize for n in chunk_lengths(segment.stop - segment.start, size)]
        seconds = (size - 1) * machine.reduce(parts[0])
        cost += Cost(0, 0, seconds, (size - 1) * parts[rank]) + barrier_cost(size, machine)
    return cost
