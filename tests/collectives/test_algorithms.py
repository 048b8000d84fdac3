"""Algorithms as objects: run and cost together, found by name, or a function of the user's."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from importlib import import_module

import numpy as np
import pytest
from claims import check_a_users_function, mine

from minidist import LocalWorld, Machine, collectives, launch
from minidist.collectives import Algorithm, Cost, UnknownCost, all_reduce, all_reduce_cost, ring
from minidist.collectives.operations import ANY_ALL_REDUCE
from minidist.data import Batches
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import SGD
from minidist.parallel import DataParallel
from tests.parallel.checks import images

MACHINE = Machine("test", latency=3e-6, bandwidth=2e9, reduce_bandwidth=5e9)
KINDS = (
    "all_reduce",
    "reduce",
    "reduce_scatter",
    "all_gather",
    "broadcast",
    "gather",
    "scatter",
    "all_to_all",
)
TABLES = {kind: getattr(collectives, kind.upper()) for kind in KINDS}
ALL = [(kind, key) for kind, table in TABLES.items() for key in table]


@pytest.mark.parametrize(("kind", "key"), ALL)
def test_every_entry_has_its_name_its_run_and_its_cost(kind, key):
    one = TABLES[kind][key]
    assert isinstance(one, Algorithm)
    assert one.name == key
    assert callable(one.run)
    assert one.run.__name__ == kind
    cost = one.cost(12, 8, 0, 3, MACHINE)
    assert isinstance(cost, Cost)
    assert cost.seconds > 0
    module = import_module(one.run.__module__)
    assert getattr(module, kind) is one, "the module offers the object itself"
    assert getattr(module, f"{kind}_cost") is one.cost, "and its formula"


def test_every_algorithm_of_the_package_is_in_its_dictionary():
    """Two of one name would hide each other; one forgotten would never be tested."""
    written = [
        (value.run.__name__, value.name)
        for module in pkgutil.walk_packages(collectives.__path__[:1], "minidist.collectives.")
        for value in vars(import_module(module.name)).values()
        if isinstance(value, Algorithm) and value.run.__module__ == module.name
    ]
    # One chooses among the others, one takes only arrays that it has allocated, and one needs what
    # not every system allows.
    apart = [("all_reduce", name) for name in ("auto", "symmetric_memory", "cross_memory")]
    assert sorted(written) == sorted(ALL + apart)
    named = set(ANY_ALL_REDUCE) - set(collectives.ALL_REDUCE)
    assert named == {"cross_memory", "auto", "library"}


def run(size, algorithm, op="sum"):
    """What every rank has after an all-reduce of [rank + 1] * 4, and how much it sent."""

    def main(comm):
        array = np.full(4, comm.rank + 1.0)
        all_reduce(comm, array, op, algorithm)
        return array.tolist(), comm.trace.sent.messages

    return launch(main, size, LocalWorld())


@pytest.mark.parametrize("size", (1, 2, 3, 4))
def test_a_name_an_object_and_a_function_are_taken(size):
    for algorithm in ("central", "auto", ring.all_reduce, mine, Algorithm("mine", mine)):
        for op, expected in (("sum", size * (size + 1) / 2), ("max", float(size))):
            assert [got for got, _ in run(size, algorithm, op)] == [[expected] * 4] * size
    assert [sent for _, sent in run(size, mine)] == [size - 1] + [1] * (size - 1)
    assert [sent for _, sent in run(size, "ring")] == [2 * (size - 1)] * size


@pytest.mark.parametrize("kind", KINDS)
def test_every_collective_takes_a_function_and_passes_it_all(kind):
    heard = []

    def spy(comm, *arguments):
        heard.append(arguments)

    first, second = np.zeros(3), np.zeros(3)
    expected = {
        "all_reduce": (first, "max"),
        "reduce": (first, "max", 2),
        "reduce_scatter": (first, "max"),
        "all_gather": (first,),
        "broadcast": (first, 2),
        "gather": (first, 2),
        "scatter": (first, 2),
        "all_to_all": (first, second),
    }[kind]

    def main(comm):
        getattr(collectives, kind)(comm, *expected, algorithm=spy)

    launch(main, 3, LocalWorld())
    assert len(heard) == 3
    assert all(
        len(got) == len(expected) and all(a is b for a, b in zip(got, expected, strict=True))
        for got in heard
    )


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_name_lists_what_there_is(kind):
    names = ", ".join(TABLES[kind])
    arrays = (np.zeros((1, 2)), np.zeros((1, 2))) if kind == "all_to_all" else (np.zeros(2),)
    with pytest.raises(ValueError, match=f"unknown algorithm 'magic': choose one of {names}"):
        launch(
            lambda comm: getattr(collectives, kind)(comm, *arrays, algorithm="magic"),
            1,
            LocalWorld(),
        )


def test_auto_and_the_library_are_listed_too():
    with pytest.raises(
        ValueError, match="shared_memory, cross_memory, auto, library, or pass a function"
    ):
        all_reduce_cost(4, 8, 0, 2, MACHINE, "magic")


def test_what_a_function_costs_is_unknown_until_it_says_so():
    with pytest.raises(UnknownCost, match="what mine costs is unknown"):
        all_reduce_cost(4, 8, 0, 2, MACHINE, mine)
    with pytest.raises(UnknownCost, match="what library costs is unknown"):
        all_reduce_cost(4, 8, 0, 2, MACHINE, "library")
    with pytest.raises(UnknownCost, match="what two trees costs is unknown"):
        Algorithm("two trees", mine).cost(4, 8, 0, 2, MACHINE)
    known = Algorithm("mine", mine, lambda *shape: Cost(1, 2, 3.0))
    assert all_reduce_cost(4, 8, 0, 2, MACHINE, known) == Cost(1, 2, 3.0)
    by_object = all_reduce_cost(4, 8, 0, 2, MACHINE, ring.all_reduce)
    assert by_object == all_reduce_cost(4, 8, 0, 2, MACHINE, "ring")
    assert by_object == ring.all_reduce.cost(4, 8, 0, 2, MACHINE)
    assert by_object == ring.all_reduce_cost(4, 8, 0, 2, MACHINE)


def test_an_algorithm_shows_the_text_and_arguments_of_its_function():
    assert ring.all_reduce.__doc__.startswith("Reduce ``array`` over all ranks, in place")
    assert repr(ring.all_reduce) == "<all_reduce by ring>"


@pytest.mark.parametrize("size", (1, 2, 3, 4))
def test_a_method_takes_a_users_function(size):
    """It trains as serial does, and says that it cannot predict what a step costs."""

    def main(comm):
        check_a_users_function(comm)
        method = DataParallel(mlp((12, 5)), CrossEntropy(), SGD(0.1), comm, algorithm=mine)
        with pytest.raises(UnknownCost, match="what mine costs is unknown"):
            method.cost(Batches(images(), 13, 0)[0], MACHINE)

    launch(main, size, LocalWorld())


def test_one_algorithm_loads_no_other():
    program = (
        "import sys; from minidist.collectives import ring; "
        "print(*sorted(m for m in sys.modules if m.startswith('minidist.collectives.')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    names = ("algorithm", "cost", "partition", "ring")
    assert done.stdout.split() == [f"minidist.collectives.{name}" for name in names]
