"""Every collective, at every awkward size, is NumPy's result at the formula's price."""

from __future__ import annotations

import functools
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import strict
from claims import MACHINE, all_collectives, broken_claims, data, lengths, measure, reduced

from minidist import collectives
from minidist.collectives import (
    all_reduce,
    auto,
    barrier,
    barrier_cost,
    chain,
    double_tree,
    hierarchical,
    learn,
    ring,
    segmented_ring,
)
from minidist.collectives.learn import LARGEST as LARGEST_MEASURED
from minidist.collectives.learn import size_class
from minidist.collectives.replay import replay
from minidist.collectives.shared import cross_memory, symmetric_memory
from minidist.comm import CollectiveMismatch, CommError, LocalWorld, launch
from minidist.comm.errors import NoSharedMemory
from minidist.comm.local.comm import LocalComm
from minidist.comm.machine import Link
from minidist.engine.array import work

COLLECTIVES = all_collectives()
ALL_REDUCES = [one for one in COLLECTIVES if one.name.startswith("all_reduce")]
DTYPES = ("float32", "float64", "int32", "int64", "uint8")


@pytest.mark.parametrize("size", range(1, 10))
@pytest.mark.parametrize("collective", COLLECTIVES, ids=str)
def test_result_counts_and_time(collective, size):
    broken = [line for n in lengths(size) for line in broken_claims(collective, size, n)]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("collective", COLLECTIVES, ids=str)
def test_a_large_odd_length(collective):
    for size in (2, 5) if collective.name.startswith("all_reduce") else (3,):
        broken = broken_claims(collective, size, 1_000_003, "float32")
        assert not broken, "\n".join(broken)


@functools.cache
def large(dtype, op):
    """Three ranks' inputs of a large odd length, and what NumPy makes of them."""
    inputs = [data(rank, 1_000_003, dtype, op) for rank in range(3)]
    return inputs, reduced(inputs, op)


@pytest.mark.parametrize("dtype", ("int64", "float32"))
@pytest.mark.parametrize("op", ("sum", "product", "max", "min"))
@pytest.mark.parametrize("collective", ALL_REDUCES, ids=str)
def test_every_operation_at_a_large_odd_length(collective, op, dtype):
    inputs, expected = large(dtype, op)

    def run(comm):
        array = inputs[comm.rank].copy()
        collective.run(comm, array, op)
        return array

    first, *others = launch(run, ranks=3, world=LocalWorld())
    tolerance = 12 * np.finfo(dtype).eps if dtype == "float32" else 0.0
    np.testing.assert_allclose(first, expected, rtol=tolerance, atol=0)
    assert all(first.tobytes() == other.tobytes() for other in others)


@pytest.mark.parametrize("size", range(1, 10))
@pytest.mark.parametrize("nbytes", (24, 100))
def test_pieces_of_any_length_keep_the_time_exact(nbytes, size, monkeypatch):
    """Algorithms that cut the array in pieces, with pieces so short that there are many.

    Also where adding is slower than moving, so that it does not hide behind it.
    """
    slow_adding = replace(MACHINE, reduce_bandwidth=MACHINE.bandwidth / 7, latency=1e-9)
    for module, constant in ((segmented_ring, "SEGMENT"), (double_tree, "PIECE"), (chain, "PIECE")):
        monkeypatch.setattr(module, constant, nbytes)
        if module is not chain:
            monkeypatch.setattr(module, "all_reduce_seconds", module.all_reduce_seconds.__wrapped__)
    broken = [
        line
        for collective in COLLECTIVES
        if collective.name.split("/")[1].split(" ")[0] in ("segmented_ring", "double_tree", "chain")
        for length in (98, 211)
        for machine in (MACHINE, slow_adding)
        for line in broken_claims(collective, size, length, machine=machine)
    ]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("size", range(1, 10))
@pytest.mark.parametrize("name", ("segmented_ring", "double_tree"))
def test_a_formula_that_follows_every_step_equals_the_clock_in_every_bit(name, size):
    """Simulator and formula call one rule, and add in one order."""
    for length in (0, 1, 97, 70_001):
        world = LocalWorld(MACHINE)
        launch(
            lambda comm, n=length: collectives.all_reduce(comm, np.ones(n), algorithm=name),
            ranks=size,
            world=world,
        )
        assert (
            world.seconds == collectives.ALL_REDUCE[name].cost(length, 8, 0, size, MACHINE).seconds
        )


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

    with pytest.raises(CollectiveMismatch, match=r"of float64\[8\].* of float64\[16\]"):
        launch(run, ranks=3, world=LocalWorld())


@pytest.mark.parametrize("name", collectives.ALL_REDUCE)
def test_dtypes_that_differ_end_in_an_error(name):
    def run(comm):
        collectives.all_reduce(comm, np.zeros(9, "f4" if comm.rank else "f8"), algorithm=name)

    with pytest.raises(CommError, match=r"float32.*float64|float64.*float32|agree on dtype"):
        launch(run, ranks=3, world=LocalWorld())


@pytest.mark.parametrize("name", collectives.ALL_REDUCE)
def test_an_unknown_operation_is_named(name):
    def run(comm):
        collectives.all_reduce(comm, np.zeros(9), "mean", algorithm=name)

    with pytest.raises(CommError, match="unknown reduction 'mean': choose one of sum, product"):
        launch(run, ranks=2, world=LocalWorld())


@pytest.mark.parametrize("compares", [True, False])
def test_a_number_is_refused_on_one_rank_too(compares):
    """Where nothing is sent, nothing else would notice that the caller does not get the sum."""

    def main(comm):
        comm.compares = compares  # as in the local world, and as under MPI
        collectives.all_reduce(comm, np.float64(1.0), algorithm="segmented_ring")

    with pytest.raises(CommError, match="all_reduce takes an array, not float64"):
        launch(main, 1, LocalWorld())


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
        work.flops += comm.rank  # one FLOP a second
        barrier(comm)
        return comm.time(), comm.trace.sent.messages

    times, messages = zip(
        *launch(run, ranks=size, world=LocalWorld(replace(MACHINE, flops=1.0))), strict=True
    )
    cost = barrier_cost(size, MACHINE)
    assert min(times) >= size - 1, f"got {times}"
    assert messages == (cost.messages,) * size
    together = launch(
        lambda comm: (barrier(comm), comm.time())[1], ranks=size, world=LocalWorld(MACHINE)
    )
    np.testing.assert_allclose(together, cost.seconds, rtol=1e-9)


# All-to-all


@pytest.mark.parametrize("size", range(1, 10))
@pytest.mark.parametrize("name", collectives.ALL_TO_ALL)
def test_all_to_all_is_a_transposition_at_the_formulas_price(name, size):
    width = 3

    def run(comm):
        send = 100.0 * comm.rank + np.arange(size * width).reshape(size, width)
        recv = np.zeros((size, width))
        collectives.all_to_all(comm, send, recv, name)
        return recv, comm.trace.sent.messages, comm.trace.sent.nbytes

    world = LocalWorld(MACHINE)
    for rank, (recv, messages, nbytes) in enumerate(launch(run, ranks=size, world=world)):
        expected = [
            [100.0 * other + rank * width + i for i in range(width)] for other in range(size)
        ]
        np.testing.assert_array_equal(recv, expected)
        cost = collectives.ALL_TO_ALL[name].cost(size * width, 8, rank, size, MACHINE)
        assert (messages, nbytes) == (cost.messages, cost.nbytes)
        assert world.seconds == pytest.approx(cost.seconds, rel=1e-9)


@pytest.mark.parametrize("name", collectives.ALL_TO_ALL)
def test_all_to_all_keeps_arrays_of_another_module_there(name):
    def run(comm):
        send = strict.asarray(10 * comm.rank + np.arange(6).reshape(3, 2))
        recv = strict.asarray(np.zeros((3, 2), int))
        collectives.all_to_all(comm, send, recv, name)
        return strict.asnumpy(recv)

    for rank, recv in enumerate(launch(run, ranks=3, world=LocalWorld())):
        assert recv.tolist() == [[10 * other + 2 * rank + i for i in (0, 1)] for other in range(3)]


def test_blocks_of_several_lengths_go_pairwise():
    def run(comm):
        send = [np.full(comm.rank + to, comm.rank) for to in range(3)]
        recv = [np.zeros(comm.rank + source, int) for source in range(3)]
        collectives.all_to_all(comm, send, recv)
        return [part.tolist() for part in recv]

    for rank, recv in enumerate(launch(run, ranks=3, world=LocalWorld())):
        assert recv == [[source] * (rank + source) for source in range(3)]


def test_bruck_says_that_it_needs_equal_blocks():
    with pytest.raises(CommError, match=r"needs two arrays of 2 rows each, not shapes None"):
        launch(
            lambda comm: collectives.all_to_all(comm, [1, 2], [3, 4], "bruck"),
            ranks=2,
            world=LocalWorld(),
        )


# Two levels, and choosing


def test_hierarchical_is_exact_on_two_levels_and_beats_one_ring():
    machine = replace(MACHINE, node=4, network=Link(30e-6, 1e8))
    seconds = {}
    for name in ("ring", "hierarchical"):
        world = LocalWorld(machine)
        launch(
            lambda comm, name=name: collectives.all_reduce(comm, np.ones(1200), algorithm=name),
            ranks=12,
            world=world,
        )
        seconds[name] = world.seconds
    cost = collectives.ALL_REDUCE["hierarchical"].cost(1200, 8, 0, 12, machine)
    assert seconds["hierarchical"] == pytest.approx(cost.seconds, rel=1e-9)
    assert seconds["hierarchical"] < seconds["ring"] / 3, seconds


def test_a_node_must_divide_the_ranks():
    with pytest.raises(ValueError, match="6 ranks cannot be nodes of 4 each"):
        launch(
            lambda comm: hierarchical.all_reduce(comm, np.ones(1), node=4),
            ranks=6,
            world=LocalWorld(),
        )


@pytest.mark.parametrize("size", (2, 3, 8, 9))
def test_auto_takes_the_least_of_the_formulas_for_this_machine(size):
    for length in (1, 1000, 100_000):
        world = LocalWorld(MACHINE)
        results = launch(
            lambda comm, n=length: (
                array := np.ones(n, np.float32),
                collectives.all_reduce(comm, array, algorithm="auto"),
            )[0].max(),
            ranks=size,
            world=world,
        )
        assert results == [size] * size
        costs = {
            name: one.cost(length, 4, 0, size, MACHINE).seconds
            for name, one in auto.CANDIDATES.items()
        }
        assert world.seconds <= min(costs.values()) * (1 + 1e-9), (length, costs, world.seconds)
        predicted = collectives.all_reduce_cost(length, 4, 0, size, MACHINE, "auto")
        assert predicted.seconds == min(costs.values())


def test_auto_follows_a_measured_table():
    table = {"4": [[100, "central"], [1000, "binomial"]]}
    got = [auto.by_table(nbytes, 4, table) for nbytes in (1, 100, 101, 10**9)]
    assert got == ["central", "central", "binomial", "binomial"]
    assert auto.by_table(1, 5, table) is None
    assert auto.by_table(1, 5, table | {"any": [[8, "ring"]]}) == "ring"
    assert auto.by_table(1, 4, table | {"any": [[8, "ring"]]}) == "central"
    assert auto.by_table(1, 5, None) is None


def test_sizes_of_one_class_lie_between_powers_of_four():
    assert [size_class(n) for n in (0, 1, 4, 5, 16, 17, 1024, 1025)] == [0, 0, 1, 2, 2, 3, 5, 6]
    largest = size_class(LARGEST_MEASURED)
    assert [size_class(n) for n in (LARGEST_MEASURED + 1, 1 << 40)] == [largest] * 2


def test_the_fastest_candidate_of_all_turns_is_learned(monkeypatch):
    """The slowest rank counts, the shortest turn counts, and who is far behind is dropped."""
    names = list(learn.CANDIDATES)
    calls = []

    def seconds_of(comm, call, repeats):
        name = next(n for n in names if learn.CANDIDATES[n].run is call.func)
        calls.append(name)
        slow_rank = 3.0 if name == "ring" and comm.rank == 1 else 1.0
        return (1 + names.index(name)) * slow_rank / (2 if len(calls) > 20 else 1)

    monkeypatch.setattr(learn, "seconds_of", seconds_of)
    found = launch(lambda comm: learn.measure(comm, np.ones(8)), 2, LocalWorld())
    assert found[0] == found[1]
    assert min(found[0], key=found[0].get) == "recursive_doubling"
    assert "library" not in calls  # which the local world has not
    assert "ring" not in found[0]
    assert launch(lambda comm: learn.learn(comm, np.ones(8)), 2, LocalWorld()) == [None, None]


def test_one_undisturbed_call_of_all_ranks_is_enough(monkeypatch):
    """A call that something disturbed, on any rank, makes no candidate slower."""
    ring, tree = learn.CANDIDATES["ring"].run, learn.CANDIDATES["double_tree"].run
    rings = []

    def seconds_of(comm, call, repeats):
        if call.func is tree:
            return np.full(repeats, 0.5 if comm.rank else 1.5)  # as slow as its slowest rank
        times = np.full(repeats, 1.1)
        if call.func is ring:
            rings.append(comm.rank)
            times[:] = 50
            times[-1] = 1.0 if len(rings) <= 2 else 1.15  # undisturbed in the first turn only
        return times

    monkeypatch.setattr(learn, "seconds_of", seconds_of)
    found = launch(lambda comm: learn.measure(comm, np.ones(8)), 2, LocalWorld())
    assert min(found[0], key=found[0].get) == "ring", found[0]
    assert found[0]["ring"] == 1.0 and found[0] == found[1]


@pytest.mark.parametrize(("length", "turns"), [(8, 5), (1 << 20, 2)])
def test_short_arrays_are_measured_in_five_turns_at_least(monkeypatch, length, turns):
    asked = []
    monkeypatch.setattr(learn, "LIMIT", 0.0)
    monkeypatch.setattr(
        learn, "seconds_of", lambda comm, call, repeats: asked.append(comm.rank) or 1.0
    )
    found = launch(lambda comm: learn.measure(comm, np.ones(length)), 2, LocalWorld())
    assert len(asked) == turns * 2 * len(found[0])


def test_candidates_are_called_more_often_once_the_slowest_are_dropped(monkeypatch):
    asked = []
    monkeypatch.setattr(learn, "LIMIT", float("inf"))
    monkeypatch.setattr(
        learn, "seconds_of", lambda comm, call, repeats: asked.append(repeats) or 1.0
    )
    found = launch(lambda comm: learn.measure(comm, np.ones(8)), 2, LocalWorld())
    first = 2 * 2 * len(found[0])  # turns, ranks, candidates
    assert set(asked[:first]) == {2} and set(asked[first:]) == {8}
    assert len(asked) == learn.TURNS * 2 * len(found[0])


def test_measuring_begins_with_zeros(monkeypatch):
    """Whatever lay in memory might overflow, and NumPy would warn the user of it."""
    empty, seen = np.empty, []

    def works(call):
        seen.append(call.args[1].copy())
        return True

    monkeypatch.setattr(np, "empty", lambda *given, **options: np.full_like(empty(*given), 1e300))
    monkeypatch.setattr(learn, "works", works)
    monkeypatch.setattr(learn, "seconds_of", lambda comm, call, repeats: 1.0)
    launch(lambda comm: learn.measure(comm, np.ones(8)), 2, LocalWorld())
    assert len(seen) == 2 * len(learn.CANDIDATES) and not np.any(seen), seen


def test_a_candidate_that_fails_on_one_rank_is_measured_on_none(monkeypatch):
    def works(call):
        comm = call.args[0]
        ring_here = call.func is learn.CANDIDATES["ring"].run and comm.rank == 1
        return call.func is not learn.CANDIDATES["library"].run and not ring_here

    monkeypatch.setattr(learn, "works", works)
    monkeypatch.setattr(learn, "seconds_of", lambda comm, call, repeats: 1.0)
    found = launch(lambda comm: learn.measure(comm, np.ones(8)), 2, LocalWorld())
    assert found[0] == found[1] and "ring" not in found[0] and "segmented_ring" in found[0]


def repeatable():
    """Every collective, by name, as a function that makes its arrays and returns the call."""

    def in_place(run):
        return lambda comm: functools.partial(run, comm, np.ones(LARGE), "sum")

    def between(run):
        def make(comm):
            send = np.ones((comm.size, LARGE // comm.size))
            return functools.partial(run, comm, send, np.empty_like(send))

        return make

    def symmetric(comm):
        array = symmetric_memory.allocate(comm, LARGE, "float64")
        return functools.partial(symmetric_memory.all_reduce, comm, array)

    def auto_all_reduce(comm, array, op):
        collectives.all_reduce(comm, array, op, "auto")

    found = {str(c): in_place(c.run) for c in COLLECTIVES[1:]}
    found |= {f"all_to_all/{name}": between(run) for name, run in collectives.ALL_TO_ALL.items()}
    found["all_reduce/symmetric_memory"] = symmetric
    found["all_reduce/auto"] = in_place(auto_all_reduce)
    found["barrier"] = lambda comm: functools.partial(barrier, comm)
    return found


LARGE = 1 << 17  # elements: 1 MB
REPEATABLE = repeatable()


@pytest.mark.parametrize("size", (3, 4))
@pytest.mark.parametrize("name", REPEATABLE)
def test_a_repeated_collective_allocates_nothing(name, size):
    """Work arrays are kept by the communicator: the second call finds them all.

    Then all ranks together, which are in this process, need no more than Python's small objects.
    """
    peaks = []

    def run(comm):
        call = REPEATABLE[name](comm)
        call()
        kept = [id(buffer) for buffer in comm._scratch.values()]
        comm.barrier()
        if comm.rank == 0:
            tracemalloc.start()
        comm.barrier()
        call()
        comm.barrier()
        if comm.rank == 0:
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        return kept == [id(buffer) for buffer in comm._scratch.values()]

    try:
        assert all(launch(run, ranks=size, world=LocalWorld()))
    finally:
        tracemalloc.stop()
    assert peaks[0] < 64 * 1024, f"{peaks[0]:,} bytes in the second call on arrays of {8 * LARGE:,}"


def test_symmetric_memory_wants_the_same_place_on_all_ranks():
    def run(comm, place):
        array = symmetric_memory.allocate(comm, 10)
        symmetric_memory.all_reduce(comm, place(comm, array))

    for place, error in [
        (lambda comm, array: array[comm.rank : comm.rank + 5], "dtype, length and place"),
        (lambda comm, array: array[: 5 + comm.rank], "ranks do not agree"),
        (lambda comm, array: array.view("i4" if comm.rank else "f4"), "ranks do not agree"),
        (lambda comm, array: array[::2], "not in symmetric memory: make it by"),
        (lambda comm, array: array.copy(), "not in symmetric memory: make it by"),
        (lambda comm, array: strict.asarray(array), "not in symmetric memory: make it by"),
    ]:
        with pytest.raises(CommError, match=error):
            launch(lambda comm, place=place: run(comm, place), ranks=3, world=LocalWorld())


def test_cross_memory_writes_into_no_array_that_is_read_only():
    """NumPy would refuse on ranks that have something to add; the others would be overwritten."""

    def main(comm):
        array = np.ones(1)
        array.flags.writeable = False
        with pytest.raises(CommError, match="all_reduce of an array that is read-only"):
            cross_memory.all_reduce.run(comm, array)
        return array.tolist()

    assert launch(main, 3, LocalWorld()) == [[1.0]] * 3


def test_cross_memory_that_is_forbidden_is_left_out(monkeypatch):
    """By measuring, by a table that was made elsewhere, and by a replay, which says so."""

    def forbidden(comm):
        raise NoSharedMemory("not allowed here")

    monkeypatch.setattr(LocalComm, "_cross_memory", forbidden)
    monkeypatch.setattr(learn, "seconds_of", lambda comm, call, repeats: 1.0)
    records = [{"ranks": "0,1", "length": 7, "itemsize": 8, "algorithm": "cross_memory"}]

    def main(comm):
        comm.tuning = {"2": [[40, "cross_memory"], [80, "central"], [160, "cross_memory"]]}
        taken = [auto.choose(comm, np.ones(n)) for n in (5, 20)]
        comm.tuning = {"2": [[40, "cross_memory"]]}
        taken.append(auto.choose(comm, np.ones(6)))
        replay(comm, records)
        all_reduce(comm, np.ones(7), algorithm="auto")
        return taken, comm.chosen[7, 8], "cross_memory" in learn.measure(comm, np.ones(8))

    with pytest.warns(UserWarning, match="took cross_memory in that run, which cannot be had"):
        (first, second) = launch(main, 2, LocalWorld(MACHINE))
    assert first == second
    assert first == (["central", "central", "recursive_doubling"], "recursive_doubling", False)


def test_symmetric_memory_of_another_communicator_is_refused():
    """Whichever of the two lies above the other."""

    def run(comm):
        other = comm.split(0)
        mine, theirs = (symmetric_memory.allocate(group, 10) for group in (comm, other))
        for group, array in ((comm, theirs), (other, mine)):
            with pytest.raises(CommError, match="with this communicator"):
                symmetric_memory.all_reduce(group, array)

    launch(run, ranks=2, world=LocalWorld())


@pytest.mark.parametrize("collective", COLLECTIVES[1:], ids=str)  # symmetric: on the host alone
def test_arrays_of_another_module_stay_there(collective):
    """On a stand-in for a GPU, which refuses to be mixed with NumPy unasked."""

    def run(comm):
        host = data(comm.rank, 7, "float64", "sum")
        array = strict.asarray(host)
        collective.run(comm, array, "sum")
        assert isinstance(array, strict.ndarray)
        return strict.asnumpy(array)

    on_host = launch(
        lambda comm: measure(comm, collective, 7, "float64", "sum")["result"],
        ranks=3,
        world=LocalWorld(),
    )
    for got, expected in zip(launch(run, ranks=3, world=LocalWorld()), on_host, strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("table", "name"),
    [
        (table, name)
        for table in (
            collectives.ALL_REDUCE,
            collectives.REDUCE,
            collectives.REDUCE_SCATTER,
            collectives.ALL_GATHER,
            collectives.BROADCAST,
            collectives.GATHER,
            collectives.SCATTER,
        )
        for name in table
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("way", ["transposed", "every second"])
def test_an_array_that_is_not_contiguous_is_refused(table, name, way):
    """It would be copied, the copy reduced, and the user's array left as it was."""

    def main(comm):
        array = np.ones((4, 6)).T if way == "transposed" else np.ones(24)[::2]
        table[name](comm, array)

    with pytest.raises(CommError, match="contiguous"):
        launch(main, 3, LocalWorld())
