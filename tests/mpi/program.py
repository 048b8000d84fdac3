"""Runs under mpiexec: every collective on these ranks, held to the claims of the local world."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "collectives")]

import numpy as np
from claims import all_collectives, check_a_users_function, differences, measure

from minidist.collectives import all_reduce, auto
from minidist.collectives.learn import learn
from minidist.collectives.shared.cross_memory import possible
from minidist.comm import CommError, launch
from minidist.comm.comm import ANY
from minidist.comm.errors import NoSharedMemory
from minidist.comm.mpi import buffers, cross_memory, windows
from minidist.comm.mpi.world import MpiWorld


def collectives_hold(comm):
    """What all ranks measured, for every collective, length and dtype."""
    found = []
    reached = possible(comm)
    for collective in all_collectives():
        if collective.name == "all_reduce/cross_memory" and not reached:
            continue  # the system does not allow it
        for length in (0, comm.size - 1, comm.size + 1, 10_007, 300_007):
            for dtype, op in (("float64", "sum"), ("int32", "product")):
                comm.barrier()
                found.append(
                    (
                        collective.name,
                        length,
                        dtype,
                        op,
                        measure(comm, collective, length, dtype, op),
                    )
                )
    return found


def requests_and_groups(comm):
    """isend and irecv in any order, receive from anyone, a split, a spawned exchange."""
    p, rank = comm.size, comm.rank
    right, left = (rank + 1) % p, (rank - 1) % p
    got = np.zeros(3)
    receiving = comm.irecv(got, left, tag=5)
    sending = comm.isend(np.full(3, rank + 1.0), right, tag=5)
    assert receiving.wait() == left, "irecv().wait() must give the source"
    assert sending.wait() == right
    assert (got == left + 1).all(), f"got {got}, expected {left + 1}"
    if rank == 0:
        buffer = np.zeros(1, np.int32)
        seen = {(comm.recv(buffer, ANY), int(buffer[0])) for _ in range(p - 1)}
        assert seen == {(r, 10 * r) for r in range(1, p)}, seen
    else:
        comm.send(np.array([10 * rank], np.int32), 0)
    part = comm.split(rank % 2, key=-rank)
    assert part.size == len(range(rank % 2, p, 2))
    other = np.zeros(1, bool)
    future = comm.spawn(
        lambda stream: (stream.sendrecv(np.ones(1, bool), right, other, left), "done")[1]
    )
    assert future.wait() == "done"
    assert other[0]
    for dtype in ("float16", "uint8", "complex64", "bool"):
        mine, theirs = np.ones(4, dtype), np.zeros(4, dtype)
        comm.sendrecv(mine, right, theirs, left)
        assert (theirs == mine).all(), dtype


def long_messages_go_in_pieces(comm):
    """With pieces of 1000 bytes instead of 2³⁰: the same numbers, and one message counted."""
    p, rank = comm.size, comm.rank
    right, left = (rank + 1) % p, (rank - 1) % p
    whole, buffers.PIECE = buffers.PIECE, 1000
    mine, theirs = np.arange(1234.0) + rank, np.zeros(1234)
    before = comm.trace.sent.messages
    comm.sendrecv(mine, right, theirs, left)
    assert (theirs == np.arange(1234.0) + left).all()
    theirs[:] = 0
    receiving, sending = comm.irecv(theirs, left), comm.isend(mine, right)
    receiving.wait()
    sending.wait()
    assert (theirs == np.arange(1234.0) + left).all()
    theirs[:] = 0
    if p > 1 and rank == 0:
        assert comm.recv(theirs) == p - 1  # from anyone
        assert (theirs == np.arange(1234.0) + p - 1).all()
    elif rank == p - 1:
        comm.send(mine, 0) if p > 1 else None
    assert comm.trace.sent.messages - before == 2 + (rank == p - 1 > 0)
    comm.barrier()
    buffers.PIECE = whole


def sharing_more_memory_than_there_is(comm):
    """An error, where the system would end the process at the first write."""
    if comm.size == 1:
        return
    true, windows.shared_memory_left = windows.shared_memory_left, lambda: 100.0 * comm.size - 1
    try:
        comm.shared(100, np.empty(0, np.uint8))
    except CommError as error:
        assert "/dev/shm has not as much left" in str(error), error
    else:
        raise AssertionError("that was more than was left")
    windows.shared_memory_left = lambda: 100.0 * comm.size
    assert [part.tolist() for part in comm.shared(100, np.empty(0, np.uint8))] == [
        [0] * 100
    ] * comm.size
    windows.shared_memory_left = true


def a_kernel_that_forbids_cross_memory(comm):
    """On one rank: then all refuse, in the user's terms, and "auto" does without."""
    if comm.size == 1:
        return
    part = comm.split(0)  # that has learned nothing
    part.tuning = {str(comm.size): [[1 << 40, "cross_memory"]]}
    forbidden = comm.rank == comm.size - 1
    true = cross_memory.kernel_calls()
    if forbidden:
        ctypes.set_errno(errno.EPERM)
        cross_memory.kernel_calls = lambda: (lambda *_: -1, true[1])
    try:
        all_reduce(part, np.ones(5), algorithm="cross_memory")
    except NoSharedMemory as error:
        why = "Operation not permitted" if forbidden else "another rank cannot reach all others"
        assert why in str(error), error
        assert "kernel.yama.ptrace_scope=0" in str(error), error
    else:
        raise AssertionError("one rank could not read")
    array = np.ones(5)
    all_reduce(part, array, algorithm="auto")
    assert array.tolist() == [comm.size] * 5
    assert part.chosen[5, 8] != "cross_memory"
    cross_memory.kernel_calls = lambda: true


def cross_memory_copies_what_it_is_told(comm):
    """Any dtype, any place, and only so much; what the kernel cannot copy is an error."""
    if comm.size == 1 or not possible(comm):
        return
    memory, right = comm.cross_memory(), (comm.rank + 1) % comm.size
    for dtype in ("bool", "float16", "complex128", "int64"):
        array = np.arange(12).astype(dtype) + np.array(comm.rank).astype(dtype)
        memory.expose(array[1:])
        comm.barrier()
        got = np.zeros(5, dtype)
        memory.read(right, 2, got)
        expected = (np.arange(12).astype(dtype) + np.array(right).astype(dtype))[3:8]
        assert (got == expected).all(), (dtype, got, expected)
        comm.barrier()
        memory.write(right, 9, got[:2])
        comm.barrier()
        left = (np.arange(12).astype(dtype) + np.array(comm.rank).astype(dtype))[3:5]
        assert (array[10:] == left).all(), (dtype, array)
        comm.barrier()
    numbers = np.array([comm.rank])
    memory.expose(numbers)
    comm.barrier()
    assert cross_memory.hindrance(memory, range(comm.size)) == ""
    assert "is not rank 0, as seen from here" in cross_memory.hindrance(memory, [77] * comm.size)
    comm.barrier()
    memory.addresses[comm.rank][0] = 8  # no process has memory there
    comm.barrier()
    try:
        memory.read(right, 0, got)
    except CommError as error:
        assert f"did not copy 40 bytes between this process and that of rank {right}" in str(error)
        assert "Bad address" in str(error), error
    else:
        raise AssertionError("there is nothing to read")
    comm.barrier()


def groups_of_listed_members(comm):
    """The order is that of the list, and nobody but the members calls."""
    if comm.rank == comm.size - 1 and comm.size > 1:
        return
    members = list(range(comm.size - 1))[::-1] or [0]
    group = comm.group(members)
    found = np.array([comm.rank])
    all_reduce(group, found, "max")
    assert (group.rank, group.size) == (members.index(comm.rank), len(members))
    assert list(group.world) == members
    assert found[0] == max(members)


def the_library_and_auto(comm):
    """Both equal the ring; what the library sends is not claimed to be known."""
    for n in (1, 1000, 100_000):
        for name in ("library", "auto"):
            array = np.full(n, comm.rank + 1.0)
            all_reduce(comm, array, algorithm=name)
            assert (array == comm.size * (comm.size + 1) / 2).all(), name
    assert comm.trace.uncounted >= 3
    what_auto_has_learned(comm)


def what_auto_has_learned(comm):
    """No table was measured here: see run.py. All ranks choose alike, and measuring is not counted.

    Where ranks outnumber cores they cannot measure, and follow a short table for one machine.
    """
    if comm.size > len(os.sched_getaffinity(0)):
        expected = {(1, 8): "recursive_doubling", (100_000, 8): "shared_memory"}
        assert {key: comm.chosen[key] for key in expected} == expected, comm.chosen
        long = "cross_memory" if possible(comm) else "shared_memory"
        assert auto.choose(comm, np.empty(200_000)) == long
        assert not any(comm.learned.values())
        return
    index = [sorted(auto.ANY).index(comm.chosen[n, 8]) for n in (1, 1000, 100_000)]
    most, least = np.array(index), np.array(index)
    all_reduce(comm, most, "max", algorithm="ring")
    all_reduce(comm, least, "min", algorithm="ring")
    assert most.tolist() == least.tolist() == index, comm.chosen
    if comm.size == 1:
        assert not comm.learned
        return
    assert {comm.learned[f"float64 {k}"] for k in (2, 7, 10)} == {
        comm.chosen[n, 8] for n in (1, 1000, 100_000)
    }
    before = comm.trace.sent.messages, comm.trace.sent.nbytes, comm.trace.uncounted
    half = np.ones(100, np.float16)  # a kind that not every library can add
    assert learn(comm, half) in auto.ANY
    part = comm.split(0)
    assert learn(part, np.ones(3)) in auto.ANY
    assert (comm.trace.sent.messages, comm.trace.sent.nbytes, comm.trace.uncounted) == before
    known = dict(comm.learned)
    all_reduce(comm, np.ones(99_000), algorithm="auto")  # of the same class
    assert comm.learned == known
    comm.tuning = {str(comm.size): [[1 << 20, "library"]]}  # what was measured in full goes first
    array = np.full(77, comm.rank + 1.0)
    all_reduce(comm, array, algorithm="auto")
    assert (array == comm.size * (comm.size + 1) / 2).all()
    assert comm.chosen[77, 8] == "library"
    comm.tuning = None


def a_recorded_launch_with_rank_0s_table(own):
    """Each process has another table, and all use rank 0's; all have the traces of all ranks."""
    table = {"any": [[1 << 10, "ring"], [1 << 40, f"table_{own}"]]}
    world = MpiWorld(record=True, tuning=lambda library: table)
    found = launch(lambda comm: (comm.rank, comm.barrier(), comm.tuning), world=world)
    assert [rank for rank, _, _ in found] == list(range(len(found)))
    assert all(tuning["any"] == [[1 << 10, "ring"], [1 << 40, "table_0"]] for *_, tuning in found)
    assert [trace.record for trace in world.traces] == [True] * len(found)
    assert len({trace.offset for trace in world.traces}) == len(found)
    for tuning in (lambda library: None, None):
        (used, *others) = launch(lambda comm: comm.tuning, world=MpiWorld(tuning=tuning))
        assert all(other == used for other in others)
        assert (used is None) == (tuning is None), used


def main(comm):
    long_messages_go_in_pieces(comm)
    sharing_more_memory_than_there_is(comm)
    a_kernel_that_forbids_cross_memory(comm)
    cross_memory_copies_what_it_is_told(comm)
    groups_of_listed_members(comm)
    the_library_and_auto(comm)
    check_a_users_function(comm)
    requests_and_groups(comm)
    return collectives_hold(comm)


if __name__ == "__main__":
    a_recorded_launch_with_rank_0s_table(MpiWorld().rank)
    results = launch(main)
    by_name = {collective.name: collective for collective in all_collectives()}
    broken = []
    for cases in zip(*results, strict=True):
        name, length, dtype, op, _ = cases[0]
        measured = [case[-1] for case in cases]
        broken += differences(by_name[name], measured, length, dtype, op)
    assert not broken, "\n".join(broken)
    print(f"{len(results)} ranks: {len(results[0])} cases hold")
