"""What every collective claims, as one function: ``broken_claims`` lists those that do not hold.

The tests want the list empty for every algorithm, in both worlds; the mutants, plausible wrong
versions, must not get through with an empty one.

    result     equal to NumPy's reduction of all ranks' data, and bitwise equal on all ranks
    counts     messages and bytes of every rank, and bytes combined, equal to the formula
    time       virtual time equal to the formula (relative 1e-9; the local world only)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from minidist import collectives
from minidist.collectives.shared import cross_memory, symmetric_memory
from minidist.comm import Comm, LocalWorld, Machine, launch

MACHINE = Machine("test", latency=3e-6, bandwidth=2e9, reduce_bandwidth=5e9)
LENGTHS = ("0", "1", "p-1", "p", "p+1", "97")
NUMPY = {"sum": np.add, "product": np.multiply, "max": np.maximum, "min": np.minimum}


def lengths(size: int) -> list[int]:
    """The lengths at which an off-by-one shows: around zero, and around the rank count."""
    return sorted({0, 1, size - 1, size, size + 1, 97})


def data(rank: int, length: int, dtype: str, op: str) -> np.ndarray:
    """Rank's own numbers: different on every rank, and with products that stay finite."""
    random = np.random.default_rng([rank, length])
    if np.dtype(dtype).kind in "iu":
        return random.integers(1, 3 if op == "product" else 100, length).astype(dtype)
    return (1 + 0.1 * random.standard_normal(length)).astype(dtype)


ALL = slice(None)
Expected = tuple[slice, np.ndarray]  # a part of the array, and what must stand there


@dataclass(frozen=True)
class Collective:
    """How to run a collective, what must come out of it, and what it says that it costs.

    ``run(comm, array, op)`` works in place. ``expected(inputs, op, rank)`` is a part of the array
    and what must stand there; ``cost(length, itemsize, rank, size, machine)`` is the formula.
    """

    name: str
    run: Callable[[Comm, np.ndarray, str], Any]
    expected: Callable[[list[np.ndarray], str, int], Expected]
    cost: Callable[..., collectives.Cost] | None
    same_everywhere: bool = True  # the result is the same on all ranks

    def __str__(self) -> str:
        return self.name


def reduced(inputs: list[np.ndarray], op: str) -> np.ndarray:
    """All ranks' inputs combined by NumPy, floats in double precision."""
    wide = [x.astype(np.float64) if x.dtype.kind == "f" else x for x in inputs]
    return functools.reduce(NUMPY[op], wide)


def expect_reduced(inputs: list[np.ndarray], op: str, rank: int) -> Expected:
    return ALL, reduced(inputs, op)


def expect_reduced_chunk(inputs: list[np.ndarray], op: str, rank: int) -> Expected:
    part = collectives.chunks(inputs[0].size, len(inputs))[rank]
    return part, reduced(inputs, op)[part]


def expect_gathered(inputs: list[np.ndarray], op: str, rank: int) -> Expected:
    parts = collectives.chunks(inputs[0].size, len(inputs))
    return ALL, np.concatenate([x[part] for x, part in zip(inputs, parts, strict=True)])


def at_root(expected: Callable[..., Expected]) -> Callable[[int], Callable[..., Expected]]:
    """The same, but on the root alone: nothing is promised of the others."""

    def rooted(root: int) -> Callable[..., Expected]:
        def of(inputs: list[np.ndarray], op: str, rank: int) -> Expected:
            part, values = expected(inputs, op, rank)
            return (part, values) if rank == root % len(inputs) else (slice(0), values[:0])

        return of

    return rooted


def expect_own(root: int) -> Callable[..., Expected]:
    def of(inputs: list[np.ndarray], op: str, rank: int) -> Expected:
        part = collectives.chunks(inputs[0].size, len(inputs))[rank]
        return part, inputs[root % len(inputs)][part]

    return of


expect_reduced_at, expect_at = at_root(expect_reduced), at_root(expect_gathered)


def expect_copy_of(root: int) -> Callable[..., Expected]:
    return lambda inputs, op, rank: (ALL, inputs[root % len(inputs)])


def rooted(kind, algorithm, expected, root) -> Collective:
    """A collective with a root: rank 0, or the last one (-1)."""
    takes_op = kind == "reduce"

    def run_it(comm, array, op):
        algorithm(comm, array, *([op] if takes_op else []), root % comm.size)

    def cost_of(length, itemsize, rank, size, machine):
        return algorithm.cost(length, itemsize, rank, size, machine, root % size)

    what = f"{kind}/{algorithm.name} from {root}"
    return Collective(what, run_it, expected(root), cost_of, same_everywhere=kind == "broadcast")


def in_symmetric_memory(
    comm: Comm, array: np.ndarray, op: str, all_reduce=symmetric_memory.all_reduce
) -> None:
    """All-reduce of a slice of an array that all ranks see."""
    wide = symmetric_memory.allocate(comm, array.size + 3, array.dtype)
    inner = wide[2 : 2 + array.size]
    inner[...] = array
    all_reduce(comm, inner, op)
    array[...] = inner
    assert not wide[:2].any(), "it wrote outside of the slice"
    assert not wide[2 + array.size :].any(), "it wrote outside of the slice"


def all_collectives() -> list[Collective]:
    """Every algorithm in the package's dictionaries, so that a new one is tested by being there."""
    found = [
        Collective(
            "all_reduce/symmetric_memory",
            in_symmetric_memory,
            expect_reduced,
            symmetric_memory.all_reduce.cost,
        )
    ]
    found += [
        Collective(f"all_reduce/{one.name}", one, expect_reduced, one.cost)
        for one in (cross_memory.all_reduce, *collectives.ALL_REDUCE.values())
    ]
    for kind, table, expected in (
        ("broadcast", collectives.BROADCAST, expect_copy_of),
        ("reduce", collectives.REDUCE, expect_reduced_at),
        ("gather", collectives.GATHER, expect_at),
        ("scatter", collectives.SCATTER, expect_own),
    ):
        for one in table.values():
            found += [rooted(kind, one, expected, root) for root in (0, -1)]
    found += [
        Collective(
            f"reduce_scatter/{one.name}",
            one,
            expect_reduced_chunk,
            one.cost,
            same_everywhere=False,
        )
        for one in collectives.REDUCE_SCATTER.values()
    ]
    found += [
        Collective(
            f"all_gather/{one.name}",
            lambda comm, array, op, run=one: run(comm, array),
            expect_gathered,
            one.cost,
        )
        for one in collectives.ALL_GATHER.values()
    ]
    return found


def measure(comm: Comm, collective: Collective, length: int, dtype: str, op: str) -> dict[str, Any]:
    """Run it once on this rank: what came out, and what it took."""
    array = data(comm.rank, length, dtype, op)
    messages, nbytes, start = comm.trace.sent.messages, comm.trace.sent.nbytes, comm.time()
    collective.run(comm, array, op)
    return {
        "result": array,
        "messages": comm.trace.sent.messages - messages,
        "bytes": comm.trace.sent.nbytes - nbytes,
        "seconds": comm.time() - start,
    }


def differences(
    collective: Collective,
    measured: list[dict[str, Any]],
    length: int,
    dtype: str,
    op: str,
    machine: Machine | None = None,
) -> list[str]:
    """The claims that these ranks' measurements break; ``machine`` if time is to be checked."""
    size = len(measured)
    inputs = [data(rank, length, dtype, op) for rank in range(size)]
    broken = []
    tolerance = 0.0 if np.dtype(dtype).kind != "f" else 4 * size * np.finfo(dtype).eps
    for rank, found in enumerate(measured):
        part, expected = collective.expected(inputs, op, rank)
        got = found["result"][part]
        if not np.allclose(got, expected, rtol=tolerance, atol=0):
            broken.append(f"rank {rank}: result {got[:4]}, expected {expected[:4]}")
        if collective.same_everywhere and found["result"].tobytes() != (
            measured[0]["result"].tobytes()
        ):
            broken.append(f"rank {rank}: not bitwise what rank 0 has")
    if collective.cost is not None:
        itemsize = np.dtype(dtype).itemsize
        costs = [
            collective.cost(length, itemsize, rank, size, machine or MACHINE)
            for rank in range(size)
        ]
        for name, field in (("messages", "messages"), ("bytes", "nbytes")):
            got = [found[name] for found in measured]
            expected = [getattr(cost, field) for cost in costs]
            if got != expected:
                broken.append(f"{name} sent: got {got}, expected {expected}")
        if machine is not None:
            got = max(found["seconds"] for found in measured)
            formula = max(cost.seconds for cost in costs)
            if abs(got - formula) > 1e-9 * formula:
                broken.append(f"seconds: got {got}, formula {formula}")
            busy = [found.get("busy") for found in measured]
            combining = [machine.reduce(cost.reduced) for cost in costs]
            if None not in busy and not np.allclose(busy, combining, rtol=1e-9, atol=0):
                broken.append(f"seconds combining: got {busy}, expected {combining}")
    return [f"{collective}, {size} ranks, {dtype}[{length}], {op}: {problem}" for problem in broken]


def broken_claims(
    collective: Collective,
    size: int,
    length: int,
    dtype: str = "float64",
    op: str = "sum",
    machine: Machine = MACHINE,
) -> list[str]:
    """The claims that do not hold in the local world, at this size."""
    world = LocalWorld(machine)
    measured = launch(
        lambda comm: measure(comm, collective, length, dtype, op), ranks=size, world=world
    )
    for found, trace in zip(measured, world.traces, strict=True):
        found["busy"] = trace.busy
    return differences(collective, measured, length, dtype, op, machine)


def mine(comm, array, op="sum"):
    """A user's: everything to rank 0, and back."""
    other = np.empty_like(array)
    for peer in range(1, comm.size):
        if comm.rank == 0:
            comm.recv(other, peer)
            comm.combine(op, array, other)
        elif comm.rank == peer:
            comm.send(array, 0)
    for peer in range(1, comm.size):
        if comm.rank == 0:
            comm.send(array, peer)
        elif comm.rank == peer:
            comm.recv(array, 0)


def check_a_users_function(comm: Comm) -> None:
    """``algorithm=mine`` sums over these ranks, and data parallelism by it equals serial."""
    from minidist.parallel import METHODS, DataParallel
    from tests.parallel.checks import Setting, check_equals_serial

    array = np.arange(5.0) + comm.rank
    collectives.all_reduce(comm, array, algorithm=mine)
    assert array.tolist() == [comm.size * i + sum(range(comm.size)) for i in range(5)]
    calls = []

    def counted(comm, array, op):
        calls.append(op)
        mine(comm, array, op)

    key = f"data_parallel/mine {comm.rank}"  # ranks of the local world share the dictionary
    METHODS[key] = functools.partial(DataParallel, algorithm=counted)
    try:
        check_equals_serial(comm, key, Setting())
    finally:
        del METHODS[key]
    assert calls == ["sum"] * Setting().steps
