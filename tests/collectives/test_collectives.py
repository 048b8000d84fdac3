"""Every collective, at every awkward size, is NumPy's result at the formula's price."""

from __future__ import annotations

import numpy as np
import pytest
from claims import MACHINE, all_collectives, broken_claims, lengths

from minidist import collectives
from minidist.collectives import barrier, barrier_cost, ring
from minidist.comm import CommError, LocalWorld, launch

COLLECTIVES = all_collectives()
DTYPES = ("float32", "float64", "int32", "int64", "uint8")


@pytest.mark.parametrize("size", range(1, 10))
@pytest.mark.parametrize("collective", COLLECTIVES, ids=str)
def test_result_counts_and_time(collective, size):
    broken = [line for n in lengths(size) for line in broken_claims(collective, size, n)]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("size", (2, 5))
@pytest.mark.parametrize("collective", COLLECTIVES, ids=str)
def test_a_large_odd_length(collective, size):
    broken = broken_claims(collective, size, 1_000_003, "float32")
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("collective", COLLECTIVES, ids=str)
def test_every_operation_on_every_dtype(collective, dtype):
    broken = [
        line
        for op in ("sum", "product", "max", "min")
        for line in broken_claims(collective, 3, 10, dtype, op)
    ]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("name", collectives.ALL_REDUCE)
def test_shape_is_kept_and_two_dimensions_work(name):
    def run(comm):
        array = np.full((3, 5), float(comm.rank + 1))
        collectives.all_reduce(comm, array, algorithm=name)
        return array

    for array in launch(run, ranks=4, world=LocalWorld()):
        np.testing.assert_array_equal(array, np.full((3, 5), 10.0))


@pytest.mark.parametrize("name", collectives.ALL_REDUCE)
def test_sizes_that_differ_end_in_an_error_and_never_hang(name):
    def run(comm):
        collectives.all_reduce(comm, np.zeros(8 + 8 * comm.rank), algorithm=name)

    with pytest.raises(CommError, match="both sides of a message must agree on dtype and length"):
        launch(run, ranks=3, world=LocalWorld())


@pytest.mark.parametrize("name", collectives.ALL_REDUCE)
def test_dtypes_that_differ_end_in_an_error(name):
    def run(comm):
        collectives.all_reduce(comm, np.zeros(9, "f4" if comm.rank else "f8"), algorithm=name)

    with pytest.raises(CommError, match=r"float32.*float64|float64.*float32"):
        launch(run, ranks=3, world=LocalWorld())


@pytest.mark.parametrize("name", collectives.ALL_REDUCE)
def test_an_unknown_operation_is_named(name):
    def run(comm):
        collectives.all_reduce(comm, np.zeros(9), "mean", algorithm=name)

    with pytest.raises(CommError, match="unknown reduction 'mean': choose one of sum, product"):
        launch(run, ranks=2, world=LocalWorld())


def test_an_unknown_algorithm_is_named():
    with pytest.raises(ValueError, match="unknown algorithm 'magic': choose one of"):
        launch(
            lambda comm: collectives.all_reduce(comm, np.zeros(1), algorithm="magic"),
            ranks=1,
            world=LocalWorld(),
        )


def test_chunks_cover_the_array_and_differ_by_one_at_most():
    for length in (0, 1, 7, 97):
        for size in range(1, 10):
            parts = ring.chunks(length, size)
            assert np.concatenate([np.arange(length)[p] for p in parts]).tolist() == list(
                range(length)
            )
            sizes = [part.stop - part.start for part in parts]
            assert sizes == sorted(sizes, reverse=True)
            assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("size", range(1, 10))
def test_nobody_leaves_a_barrier_before_the_last_has_come(size):
    """Rank r computes r seconds first; all leave when the formula says, after the slowest."""

    def run(comm):
        comm._run.current.clock += comm.rank
        comm.trace.computed(comm.time())
        barrier(comm)
        return comm.time(), comm.trace.sent.messages

    times, messages = zip(*launch(run, ranks=size, world=LocalWorld(MACHINE)), strict=True)
    cost = barrier_cost(size, MACHINE)
    assert min(times) >= size - 1, f"got {times}"
    assert messages == (cost.messages,) * size
    together = launch(
        lambda comm: (barrier(comm), comm.time())[1], ranks=size, world=LocalWorld(MACHINE)
    )
    np.testing.assert_allclose(together, cost.seconds, rtol=1e-9)
