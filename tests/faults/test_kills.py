"""Ranks are killed again and again, during saves too, and the run ends with the same numbers."""

from __future__ import annotations

import os
import random
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from minidist import LocalWorld, launch
from minidist.engine.array import defaults
from tests.checkpoint.runs import gap
from tests.faults.kill_program import SETTING, make
from tests.mpi.run import ROOT, mpiexec, needs_mpi
from tests.parallel.checks import Batches

PROGRAM = str(ROOT / "tests" / "faults" / "kill_program.py")


def unbroken(key: str, ranks: int, steps: int) -> dict[str, np.ndarray]:
    """The parameters of a run that nobody kills and nobody saves."""

    def body(comm):
        with defaults(dtype="float64"):
            method = make(key, comm, SETTING)
            batches = Batches(SETTING.dataset, SETTING.batch, SETTING.seed)
            for step in range(steps):
                method.step(batches[step])
            return method.parameters()

    return launch(body, ranks, LocalWorld())[0]


def survive(
    key: str, ranks: list[int], steps: int, kills: int, folder: Path, seed: int
) -> dict[str, np.ndarray]:
    """Start the program until ``kills`` ranks were killed, then let it end; its parameters."""
    draw, log = random.Random(seed), folder / "kills"
    os.environ["KILLS"] = str(log)
    start = partial(mpiexec, python=())
    try:
        for number in range(3 * kills):
            count = len(log.read_text().splitlines()) if log.exists() else 0
            if count >= kills or (folder / "final.safetensors").exists():
                break
            how = f"{seed} {number}"
            done = start(draw.choice(ranks), PROGRAM, key, str(folder), str(steps), how)
            assert "Error" not in done.stderr, done.stderr
        else:
            pytest.fail(f"only {count} of {kills} kills in {3 * kills} starts")
        assert count >= kills, f"the run ended after {count} of {kills} kills"
        done = start(ranks[0], PROGRAM, key, str(folder), str(steps), "none")
        assert done.returncode == 0, done.stderr
        print("killed:", Counter(log.read_text().splitlines()))
    finally:
        del os.environ["KILLS"]
    return load_file(folder / "final.safetensors")


@needs_mpi
@pytest.mark.slow
def test_five_kills_and_the_same_numbers_bitwise(tmp_path):
    expected = unbroken("zero/3", 2, 60)
    got = survive("zero/3", [2], 60, 5, tmp_path, seed=1)
    assert all(np.array_equal(got[name], values) for name, values in expected.items())


FOUR = ["data_parallel/ring", "zero/3", "pipeline/1f1b", "parameter_server/bsp"]


@needs_mpi
@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("key", FOUR)
def test_200_steps_with_20_kills_are_the_same_run_bitwise(key, tmp_path):
    expected = unbroken(key, 3, 200)
    got = survive(key, [3], 200, 20, tmp_path, seed=2)
    assert all(np.array_equal(got[name], values) for name, values in expected.items())


@needs_mpi
@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("key", FOUR)
def test_200_steps_with_20_kills_on_changing_numbers_of_ranks(key, tmp_path):
    expected = unbroken(key, 3, 200)
    got = survive(key, [3, 2, 4], 200, 20, tmp_path, seed=3)
    assert gap(got, expected) < 1e-12
