"""What "auto" took is recorded, and taken again: in a trace, in a checkpoint, and by ``replay``."""

from __future__ import annotations

import json

import numpy as np
import pytest

from minidist import LocalWorld, Machine, launch
from minidist.checkpoint import load, save
from minidist.collectives import all_reduce, auto
from minidist.collectives.replay import replay
from minidist.comm.choices import named, recorded
from minidist.comm.timeline import Timeline
from minidist.data import Batches, fashion_mnist
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import SGD
from minidist.parallel import DataParallel

LENGTH = 30_000
# For 120 KB on four ranks: many short rounds where latency is low, few where it is high.
THEN, NOW = Machine(latency=1e-7, bandwidth=1e8), Machine(latency=1e-1)


def values(comm):
    return np.random.default_rng(comm.rank).standard_normal(LENGTH).astype(np.float32)


def summed(comm, records=()):
    """By an overlapped stream, by the rank itself and by two halves: all three are recorded."""
    replay(comm, list(records))
    array, half, other = values(comm), values(comm), values(comm)
    future = comm.spawn(all_reduce, other)
    all_reduce(comm, array)
    all_reduce(comm.split(comm.rank % 2), half)
    future.wait()
    return array, half, other, comm.trace.choices


def test_a_replayed_run_adds_in_the_same_order():
    names = [auto.by_formula(LENGTH, 4, 4, machine) for machine in (THEN, NOW)]
    assert names[0] != names[1], "or nothing is tested"
    then = launch(summed, 4, LocalWorld(THEN))
    records = recorded(rank[3] for rank in then)
    assert {one["ranks"] for one in records} == {"0-3", "0,2", "1,3"}
    now = launch(summed, 4, LocalWorld(NOW))
    again = launch(lambda comm: summed(comm, records), 4, LocalWorld(NOW))
    assert any((a[0] != b[0]).any() for a, b in zip(then, now, strict=True)), "another order"
    for a, b in zip(then, again, strict=True):
        assert a[3].items() <= b[3].items()
        for first, second in zip(a[:3], b[:3], strict=True):
            np.testing.assert_array_equal(first, second)


def train(comm, folder, saves):
    training, _ = fashion_mnist()
    batches = Batches(training, 24, 0)
    method = DataParallel(mlp((784, 40, 10)), CrossEntropy(), SGD(0.1), comm, algorithm="auto")
    if not saves:
        assert load(folder, method, batches).step == 1
    for step in range(*((0, 1) if saves else (1, 3))):
        method.step(batches[step])
        if saves:
            save(folder, method, batches=batches)
    if saves:
        for step in (1, 2):
            method.step(batches[step])
    return method.parameters()


def test_a_resumed_run_adds_in_the_same_order(tmp_path):
    whole = launch(lambda comm: train(comm, tmp_path, True), 4, LocalWorld(THEN))
    resumed = launch(lambda comm: train(comm, tmp_path, False), 4, LocalWorld(NOW))
    for name, array in whole[0].items():
        np.testing.assert_array_equal(resumed[0][name], array)
    (manifest,) = tmp_path.glob("*/manifest.json")
    assert {one["ranks"] for one in json.loads(manifest.read_text())["algorithms"]} == {"0-3"}


def test_a_trace_has_them(tmp_path):
    world = LocalWorld(THEN, record=True)
    launch(summed, 4, world)
    Timeline(world.traces).save(tmp_path / "trace.json")
    found = json.loads((tmp_path / "trace.json").read_text())["otherData"]["algorithms"]
    name = auto.by_formula(LENGTH, 4, 4, THEN)
    assert {"ranks": "0-3", "length": LENGTH, "itemsize": 4, "algorithm": name} in found


def test_what_cannot_be_had_is_said_and_left_out():
    records = [{"ranks": "0,1", "length": 5, "itemsize": 4, "algorithm": "of_the_future"}]

    def program(comm):
        replay(comm, records)
        array = np.ones(5, np.float32)
        all_reduce(comm, array)
        return float(array[0])

    with pytest.warns(UserWarning, match="of_the_future"):
        assert launch(program, 2) == [2.0, 2.0]
    for wrong in ({}, [{"ranks": "0,1"}], [records[0] | {"length": "5"}], None):
        with pytest.raises(ValueError, match="no record of algorithms"):
            launch(lambda comm, wrong=wrong: replay(comm, wrong), 1)


def test_groups_have_one_name_each():
    groups = [range(4), range(0, 8, 2), (0, 1), (1, 0), (0, 2, 4), (4, 2, 0), (0, 1, 3), (3,)]
    names = [named(group) for group in groups]
    assert len(set(names)) == len(groups)
    assert named([0, 2, 4, 6]) == named(range(0, 8, 2)) == "0-6:2"
