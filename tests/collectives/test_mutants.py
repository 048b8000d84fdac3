"""The checks reject plausible wrong collectives: otherwise they would check nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from claims import all_collectives, broken_claims, in_symmetric_memory, lengths
from mutants import Mutant

from minidist.collectives.shared import cross_memory, shared_memory
from minidist.comm import CommError, Deadlock, LocalWorld, launch

TRUE = {collective.name: collective for collective in all_collectives()}
HOME = "minidist.collectives."

# What is mutated, which function of it is run, and as which collective it is judged.
MUTANTS = [
    (
        Mutant(
            HOME + "ring",
            "the last round is dropped",
            '"all-gather", comm.size - 1',
            '"all-gather", comm.size - 2',
        ),
        "all_reduce",
        "all_reduce/ring",
    ),
    (
        Mutant(
            HOME + "ring",
            "added twice",
            "comm.combine(op, growing, arrived)",
            "comm.combine(op, growing, arrived); comm.combine(op, growing, arrived)",
        ),
        "all_reduce",
        "all_reduce/ring",
    ),
    (
        Mutant(
            HOME + "ring",
            "never added",
            "comm.combine(op, growing, arrived)",
            "growing[...] = arrived",
        ),
        "all_reduce",
        "all_reduce/ring",
    ),
    (
        Mutant(
            HOME + "ring",
            "always adds, whatever op",
            "comm.combine(op, growing",
            'comm.combine("sum", growing',
        ),
        "all_reduce",
        "all_reduce/ring",
    ),
    (
        Mutant(
            HOME + "central",
            "the result is not sent back",
            "    broadcast.run(comm, array, root)",
            "    pass",
        ),
        "all_reduce",
        "all_reduce/central",
    ),
    (
        Mutant(
            HOME + "central",
            "divided by nobody's rank count",
            "comm.combine(op, array, incoming)",
            "comm.combine(op, array, incoming); array //= 2",
        ),
        "all_reduce",
        "all_reduce/central",
    ),
    (
        Mutant(
            HOME + "central",
            "a wrong root",
            'if comm.rank != root:\n        with comm.step("broadcast from", root)',
            'root = 0\n    if comm.rank != root:\n        with comm.step("broadcast from", root)',
        ),
        "broadcast",
        "broadcast/central from -1",
    ),
    (
        Mutant(
            HOME + "binomial",
            "the largest subtree is forgotten",
            "reversed(children)",
            "reversed(children[1:])",
        ),
        "all_reduce",
        "all_reduce/binomial",
    ),
    (
        Mutant(
            HOME + "binomial",
            "the parent is not counted from the root",
            "(parent + root) % comm.size",
            "parent",
        ),
        "broadcast",
        "broadcast/binomial from -1",
    ),
    (
        Mutant(
            HOME + "recursive_doubling",
            "the distance never grows",
            "distance *= 2",
            "distance *= 1",
        ),
        "all_reduce",
        "all_reduce/recursive_doubling",
    ),
    (
        Mutant(
            HOME + "halving_doubling",
            "keeps the half that it gives away",
            "if not worker & count else",
            "if worker & count else",
        ),
        "all_reduce",
        "all_reduce/halving_doubling",
    ),
    (
        Mutant(
            HOME + "segmented_ring",
            "adds what has not yet come",
            "comm.combine(op, place, buffers[number % 2]",
            "comm.combine(op, place, buffers[0]",
        ),
        "all_reduce",
        "all_reduce/segmented_ring",
    ),
    (
        Mutant(
            HOME + "double_tree",
            "only one of the trees is there",
            "in (edge.child, edge.parent)]",
            "in (edge.child, edge.parent) and edge.tree == 0]",
        ),
        "all_reduce",
        "all_reduce/double_tree",
    ),
    (
        Mutant(
            HOME + "hierarchical",
            "the nodes are not joined",
            "ring.all_reduce(across, mine, op)",
            "pass",
        ),
        "all_reduce",
        "all_reduce/hierarchical",
    ),
    (
        Mutant(
            HOME + "shared.shared_memory",
            "copies out before all have added",
            "if turn <= len(segments):",
            "if turn < len(segments):",
        ),
        "all_reduce",
        "all_reduce/shared_memory",
    ),
    (
        Mutant(
            HOME + "chain",
            "the last rank passes it on, too",
            "if place < comm.size - 1:",
            "if place < comm.size:",
        ),
        "broadcast",
        "broadcast/chain from -1",
    ),
    (
        Mutant(
            HOME + "scatter_all_gather",
            "passes on the chunk that it waits for",
            "(place - round + 1)",
            "(place - round)",
        ),
        "broadcast",
        "broadcast/scatter_all_gather from -1",
    ),
    (
        Mutant(
            HOME + "binomial_gather",
            "a bundle is of the child alone",
            "ends[subtree(child, size)] - first",
            "ends[child + 1] - first",
        ),
        "scatter",
        "scatter/binomial from -1",
    ),
    (
        Mutant(
            HOME + "binomial_gather",
            "bundles are unpacked as if from rank 0 on",
            "flat[part] = bundle[end",
            "flat[end - (part.stop - part.start) : end] = bundle[end",
        ),
        "gather",
        "gather/binomial from -1",
    ),
    (
        Mutant(
            HOME + "bruck",
            "the last round is not cut short",
            "count = min(distance, size - distance)",
            "count = distance",
        ),
        "all_gather",
        "all_gather/bruck",
    ),
]


def rejected(collective) -> list[str]:
    """What is wrong with it, over a few sizes; an error or a deadlock is an answer too."""
    found = []
    for size in (2, 3, 4, 5):
        for length in lengths(size):
            for op, dtype in (("sum", "float64"), ("max", "int64")):
                try:
                    found += broken_claims(collective, size, length, dtype, op)
                except (CommError, Deadlock, ValueError, IndexError) as error:
                    found.append(str(error))
    return found


@pytest.mark.parametrize(("mutant", "function", "name"), MUTANTS, ids=lambda value: str(value))
def test_mutants_are_rejected(mutant, function, name):
    true = TRUE[name]
    wrong = getattr(mutant.load(), function)
    root = -1 if name.endswith("-1") else None

    def run(comm, array, op):
        if name.startswith("all_gather"):
            return wrong(comm, array)
        return wrong(comm, array, root % comm.size) if root else wrong(comm, array, op)

    assert not rejected(true)
    assert rejected(replace(true, run=run)), f"nothing noticed {mutant}"


@pytest.mark.parametrize(
    ("what", "old", "new"),
    [
        ("one inbox for all segments", "boxes[comm.rank][number % 2]", "boxes[comm.rank][0]"),
        ("one outbox for all segments", "[2 + number % 2]", "[2]"),
        ("the next segment is added", "add(turn - 1)", "add(turn)"),
        ("the last segment is not copied out", "len(segments) + 2", "len(segments) + 1"),
    ],
)
def test_mutants_of_many_segments_are_rejected(monkeypatch, what, old, new):
    """Where an array is one segment long, nobody sees how segments follow one another."""
    monkeypatch.setattr(shared_memory, "SEGMENT", 64)
    mutant = Mutant(HOME + "shared.shared_memory", what, old, new)
    wrong = mutant.load()
    wrong.SEGMENT = 64
    true = TRUE["all_reduce/shared_memory"]
    assert not rejected(true)
    assert rejected(replace(true, run=wrong.all_reduce)), f"nothing noticed {mutant}"


@pytest.mark.parametrize(
    ("what", "old", "new"),
    [
        (
            "adds before all have come",
            "    barrier(comm)\n    check_agreement",
            "    check_agreement",
        ),
        ("leaves before all have added", "] = mine[piece]\n    barrier(comm)", "] = mine[piece]"),
        (
            "hands out too little",
            "other[piece] = mine[piece]",
            "other[piece][1:] = 0",
        ),
        ("adds its own array too", "arrays.pop(comm.rank)", "arrays[comm.rank]"),
    ],
)
def test_mutants_of_symmetric_memory_are_rejected(what, old, new):
    mutant = Mutant(HOME + "shared.symmetric_memory", what, old, new)
    wrong = mutant.load().all_reduce
    true = TRUE["all_reduce/symmetric_memory"]
    run = lambda comm, array, op: in_symmetric_memory(comm, array, op, wrong)
    assert not rejected(true)
    assert rejected(replace(true, run=run)), f"nothing noticed {mutant}"


@pytest.mark.parametrize(
    ("what", "old", "new"),
    [
        ("reads before all have come", "    barrier(comm)\n    check_", "    check_"),
        ("leaves before all have written", "first, piece)\n    barrier(comm)", "first, piece)"),
        ("reads its own", "memory.read(rank,", "memory.read(comm.rank,"),
        ("always reads the first piece", "read(rank, first,", "read(rank, chunk.start,"),
        ("always writes the first piece", "write(rank, first,", "write(rank, chunk.start,"),
        ("writes what it has read", "write(rank, first, piece)", "write(rank, first, arrived)"),
        (
            "adds the first rank only",
            "for rank in others:\n            memory.read",
            "for rank in others[:1]:\n            memory.read",
        ),
        (
            "writes to the first rank only",
            "for rank in others:\n            memory.write",
            "for rank in others[:1]:\n            memory.write",
        ),
        (
            "the last piece is forgotten",
            "chunk.start, chunk.stop, step",
            "chunk.start, chunk.stop - step, step",
        ),
        (
            "the last piece goes on into the next chunk",
            "min(first + step, chunk.stop)",
            "first + step",
        ),
        ("does not compare what all reduce", "    check_agreement", "    0 and check_agreement"),
    ],
)
def test_mutants_of_cross_memory_are_rejected(monkeypatch, what, old, new):
    """With pieces so short that a chunk has several."""
    monkeypatch.setattr(cross_memory, "PIECE", 64)
    wrong = Mutant(HOME + "shared.cross_memory", what, old, new).load()
    wrong.PIECE = 64
    true = TRUE["all_reduce/cross_memory"]
    assert not rejected(true) and not mixes_dtypes(true.run)
    broken = rejected(replace(true, run=wrong.all_reduce)) or mixes_dtypes(wrong.all_reduce)
    assert broken, f"nothing noticed: {what}"


def mixes_dtypes(all_reduce) -> bool:
    """Whether ranks with another dtype each get a result."""

    def run(comm):
        all_reduce.run(comm, np.zeros(9, "f4" if comm.rank else "f8"), "sum")

    try:
        launch(run, 3, LocalWorld())
    except CommError as error:
        return "agree on dtype" not in str(error)
    return True


def test_a_ring_that_sends_whole_arrays_is_rejected_by_its_counts():
    """The result is right, so only the bytes can tell."""

    def whole(comm, array, op):
        travelling, incoming = array.copy(), np.empty_like(array)
        left, right = (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size
        for _ in range(comm.size - 1):
            comm.sendrecv(travelling, right, incoming, left)
            comm.combine(op, array, incoming)
            travelling[...] = incoming

    broken = rejected(replace(TRUE["all_reduce/ring"], run=whole, same_everywhere=False))
    assert broken
    assert all("sent" in line or "seconds" in line for line in broken), broken[0]
