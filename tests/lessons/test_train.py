"""lessons/scripts/train.py: own data, metrics, and going on after a kill, on other ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from minidist.data import write_tokens
from tests.mpi.run import ROOT, mpiexec, needs_mpi

TRAIN = str(ROOT / "lessons" / "scripts" / "train.py")
pytestmark = pytest.mark.slow


def train(*arguments: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, TRAIN, *arguments],
        env=environment, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def metrics(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@needs_mpi
def test_it_goes_on_by_itself_on_another_number_of_ranks_and_by_another_method(tmp_path):
    random = np.random.default_rng(1)
    inputs = random.standard_normal((80, 5))
    rows = np.column_stack([inputs, inputs[:, 0] > 0])
    np.savetxt(tmp_path / "my.csv", rows, delimiter=",", header="a,b,c,d,e,class", comments="")
    common = ["--data", str(tmp_path / "my.csv"), "--width", "8", "--batch", "16", "--lr", "0.05"]
    common += ["--report", "10", "--save", "10", "--evaluate", "15"]
    out = ["--out", str(tmp_path / "a")]
    printed = train(*common, *out, "--steps", "20", "--ranks", "3")
    assert "going on" not in printed
    with (tmp_path / "a" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "loss": 0.1}\n{"st')  # by a run that was killed after step 20
    again = [TRAIN, *common, *out, "--steps", "40", "--method", "zero/3"]
    done = mpiexec(2, *again, python=())
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("going on from step 20 on 2 ranks") == 1
    lines = metrics(tmp_path / "a")
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert [line["step"] for line in lines] == [10, 15, 20, 20, 30, 30, 40, 40]
    assert [line["ranks"] for line in lines if "ranks" in line] == [3, 3, 2, 2]
    train(*common, "--out", str(tmp_path / "b"), "--steps", "40", "--ranks", "2")
    whole = {line["step"]: line["loss"] for line in metrics(tmp_path / "b") if "loss" in line}
    assert losses == pytest.approx(whole, rel=1e-4)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "checkpoints", "metrics.jsonl", "model.safetensors",
    ]  # fmt: skip


@pytest.mark.long
def test_npz_and_tokens_and_text(tmp_path):
    random = np.random.default_rng(1)
    np.savez(
        tmp_path / "a.npz", inputs=random.random((40, 4, 4)), targets=random.integers(0, 3, 40)
    )
    write_tokens(tmp_path / "a.npy", [random.integers(0, 50, 4000)], 50)
    (tmp_path / "a.txt").write_text("to be or not to be " * 100)
    for name in ("a.npz", "a.npy", "a.txt"):
        printed = train("--data", str(tmp_path / name), "--steps", "4", "--batch", "4", "--width",
                        "32", "--length", "8", "--classes", "50", "--ranks", "2")  # fmt: skip
        assert "test accuracy" in printed, name
