"""Every lesson and script runs: under python, under mpirun, and the lessons as notebooks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.long.notebooks import execute
from tests.mpi.run import ROOT, mpiexec, needs_mpi

pytestmark = pytest.mark.slow
COLLECTIVES = ROOT / "lessons" / "scripts" / "collectives.py"
SCRIPTS = sorted(set(COLLECTIVES.parent.glob("*.py")) - {COLLECTIVES})  # that train
# What a script prints at its end; most train to 80 % on the test images.
PRINTS = {
    "many_requests": "24 answered, 0 refused",
    "lora": "trained 4096 of 32608 weights",
}
DAILY = ["data_parallel", "parameter_server", "pipeline"]  # under mpirun; the others in make long
UNDER_MPIRUN = [
    pytest.param(path, marks=() if path.stem in DAILY else pytest.mark.long, id=path.stem)
    for path in SCRIPTS
    if path.stem != "serial"
]
DISTRIBUTED = [
    pytest.param("00_one_model_five_ways", marks=pytest.mark.long),
    pytest.param("05_messages", marks=pytest.mark.long),
    "06_all_reduce",
    pytest.param("10_parameter_server", marks=pytest.mark.long),
    pytest.param("22_nobody_waits", marks=pytest.mark.long),
    pytest.param("26_fastest_all_reduce", marks=pytest.mark.long),
    pytest.param("11_pipelines", marks=pytest.mark.long),
    pytest.param("12_when_things_break", marks=pytest.mark.long),
    pytest.param("16_tensor_parallel", marks=pytest.mark.long),
    pytest.param("17_putting_it_together", marks=pytest.mark.long),
    pytest.param("24_federated", marks=pytest.mark.long),
]


def run(path: Path, folder: Path) -> str:
    environment = os.environ | {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(path)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


ALONE = [*DAILY, "serial", "zero", "gossip", "mesh", "lora"]  # in one process; all in make long


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=() if path.stem in ALONE else pytest.mark.long, id=path.stem)
        for path in SCRIPTS
    ],
)
def test_script_trains_in_one_process(path, tmp_path):
    assert PRINTS.get(path.stem, "test accuracy 8") in run(path, tmp_path)


@needs_mpi
@pytest.mark.parametrize("path", UNDER_MPIRUN)
def test_script_trains_under_mpirun_and_prints_once(path):
    done = mpiexec(4, str(path), python=())
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(PRINTS.get(path.stem, "test accuracy 8")) == 1


@needs_mpi
def test_the_collectives_script_prints_the_same_in_both_worlds(tmp_path):
    alone = run(COLLECTIVES, tmp_path)
    assert "all-to-all     bruck                  2 messages" in alone
    done = mpiexec(4, str(COLLECTIVES), python=())
    assert done.returncode == 0, done.stderr
    assert done.stdout == alone


def run_lesson(name: str, folder: Path) -> str:
    printed = run(ROOT / "lessons" / f"{name}.py", folder)
    assert f"picture: out/lessons/{name}.png" in printed
    assert (folder / "out" / "lessons" / f"{name}.png").stat().st_size > 20_000
    return printed


@pytest.mark.parametrize(
    ("name", "claim"),
    [
        ("00_one_model_five_ways", r"pipeline gpipe .* idle (\S+), predicted \1"),
        ("10_parameter_server", r"ServerLost: server 1 \(rank 1\) has died"),
        ("22_nobody_waits", r"one worker 4 times.*\nBSP +1\.58 s, +232 gradients applied\n"),
        (
            "26_fastest_all_reduce",
            r"ring +1276\.9 .*\nhierarchical +289\.9 (?s:.*), ring +12\.0 µs",
        ),
        ("11_pipelines", r"zero_bubble_v +(\S+) +\1 +(\S+) +\2 +bit for bit(?s:.*)mine.*NOT equal"),
        ("16_tensor_parallel", r"tensor, 4 ranks +loss (\S+) \(gap (0e\+00|\de-1\d)\)"),
        (
            "12_when_things_break",
            r"the job ends: .* has crashed(?s:.*) 3 go on from step 20: losses within \de-0[6-9]\n",
        ),
    ],
)
def test_lesson_draws_its_picture_and_prints_its_claim(name, claim, tmp_path):
    printed = run_lesson(name, tmp_path)
    assert re.search(claim, printed), f"{claim} is not in\n{printed}"


@needs_mpi
@pytest.mark.parametrize("name", DISTRIBUTED)
def test_lesson_draws_its_picture_and_prints_the_same_under_mpirun(name, tmp_path):
    alone = run_lesson(name, tmp_path)
    done = mpiexec(4, str(ROOT / "lessons" / f"{name}.py"), python=())
    assert done.returncode == 0, done.stderr
    assert simulated(done.stdout) == simulated(alone)


def simulated(printed: str) -> list[str]:
    """What is printed without the lines about the ranks that there are, which say which kind."""
    return [line for line in printed.splitlines() if not re.match(r"\d+ (real|simulated) ", line)]


@needs_mpi
@pytest.mark.parametrize(("name", "ranks"), [("05_messages", 1), ("06_all_reduce", 3)])
def test_lessons_end_well_on_other_numbers_of_ranks(name, ranks):
    done = mpiexec(ranks, str(ROOT / "lessons" / f"{name}.py"), python=())
    assert done.returncode == 0, done.stderr
    assert "picture:" in done.stdout


def test_a_lesson_with_ranks_runs_as_a_notebook(tmp_path, monkeypatch):
    """One of them: ``make long`` runs them all."""
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    outputs = execute(ROOT / "lessons" / "05_messages.py", tmp_path)
    assert any("image/png" in output.get("data", {}) for output in outputs), "no picture shown"
