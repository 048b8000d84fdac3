"""Ranks are killed again and again, during saves too, and the run ends with the same numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from minidist import LocalWorld, launch
from minidist.engine.array import defaults
from tests.checkpoint.runs import gap
from tests.faults.kill_program import SETTING, make
from tests.mpi.run import ROOT, needs_mpi
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
    key: str, ranks: int, steps: int, kills: int, folder: Path, seed: int, *options: str
) -> dict[str, np.ndarray]:
    """One ``minidist run`` in which so many ranks are killed, one after another; its parameters."""
    command = ("run", "-n", str(ranks), "--restarts", str(3 * kills), *options, PROGRAM)
    done = subprocess.run(
        [sys.executable, "-m", "minidist", *command, key, folder, *map(str, (steps, kills, seed))],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "MINIDIST_TUNING": os.devnull},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr, done.stderr
    killed = Counter((folder / "kills").read_text().splitlines())
    assert killed.total() >= kills, f"the run ended after {killed} of {kills} kills"
    print("killed:", killed, "restarts:", done.stderr.count("minidist run: restart "))
    return load_file(folder / "final.safetensors")


@needs_mpi
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_five_kills_and_the_same_numbers_bitwise(tmp_path):
    expected = unbroken("zero/3", 2, 60)
    got = survive("zero/3", 2, 60, 5, tmp_path, 1)
    assert all(np.array_equal(got[name], values) for name, values in expected.items())


FOUR = ["data_parallel/ring", "zero/3", "pipeline/1f1b", "parameter_server/bsp"]


@needs_mpi
@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("key", FOUR)
def test_200_steps_with_20_kills_are_the_same_run_bitwise(key, tmp_path):
    expected = unbroken(key, 3, 200)
    got = survive(key, 3, 200, 20, tmp_path, 2)
    assert all(np.array_equal(got[name], values) for name, values in expected.items())


@needs_mpi
@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("key", FOUR)
def test_200_steps_with_20_kills_on_fewer_and_fewer_ranks(key, tmp_path):
    expected = unbroken(key, 3, 200)
    got = survive(key, 4, 200, 20, tmp_path, 3, "--min-ranks", "2")
    assert gap(got, expected) < 1e-12
