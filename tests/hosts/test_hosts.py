"""Several machines, emulated: see machines.py. Skipped where that is not allowed."""

from __future__ import annotations

import json
import time

import pytest

from minidist.run.launcher import mpi4py_library
from tests.hosts.machines import Machines, allowed, running

OPEN_MPI = mpi4py_library() == "Open MPI"
pytestmark = [
    pytest.mark.mpi,
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not allowed(), reason="this process may not make network namespaces"),
]
PROGRAM = "tests/hosts/program.py"


def test_two_machines_train_lose_the_cable_and_go_on_with_the_one_that_is_left():
    with Machines() as machines:
        machines.use(OPEN_MPI)
        job = ("run", "-n", "4", "--hosts", machines.hosts, PROGRAM)
        with machines.start(*job, "0", open_mpi=OPEN_MPI) as first:
            printed, _ = first.communicate(timeout=60)
        assert first.returncode == 0, printed
        assert "machine0 machine0 machine1 machine1; shared(): only 2 of 4 ranks" in printed

        under_way = machines.folder / "under-way"
        options = ("--restarts", "1", "--min-ranks", "2")
        again = ("run", *options, *job[1:], "600", str(under_way))
        with machines.start(*again, open_mpi=OPEN_MPI) as second:
            while not under_way.exists() and second.poll() is None:
                time.sleep(0.1)
            machines.cut()
            printed, _ = second.communicate(timeout=90)
        assert second.returncode == 0, printed
        assert "the machine machine1 cannot be reached any longer" in printed, printed
        assert "restart 1 of 1, with 2 ranks" in printed
        assert "machine0 machine0; " in printed, printed
        until = time.monotonic() + 60
        while running(str(under_way)) and time.monotonic() < until:
            time.sleep(0.5)  # machine1's ranks find out by themselves
        assert running(str(under_way)) == []


def test_compare_on_two_machines_leaves_out_what_needs_shared_memory(tmp_path):
    out = tmp_path / "compare"
    methods = "data_parallel,zero/3,pipeline/1f1b,parameter_server/bsp,local_sgd"
    with Machines() as machines:
        machines.use(OPEN_MPI)
        words = ["run", "-n", "4", "--hosts", machines.hosts, "-m", "minidist", "compare"]
        words += ["--world", "mpi", "--steps", "4", "--batch", "40", "--dtype", "float64"]
        words += ["--methods", methods, "--out", str(out)]
        with machines.start(*words, open_mpi=OPEN_MPI) as job:
            printed, _ = job.communicate(timeout=300)
    assert job.returncode == 0, printed
    found = json.loads((out / "compare.json").read_text())
    assert list(found["not_applicable"]) == ["data_parallel/symmetric"], found["not_applicable"]
    assert "left out: data_parallel/symmetric: shared(): only 2 of 4 ranks" in printed
    assert len(found["rows"]) > 6
    for row in found["rows"]:
        name = f"{row['method']}/{row['variant']}"
        if row["exact"]:
            assert max(row["loss_gap"], row["parameter_gap"]) < 1e-11, name
        if row["predicted_bytes_sent"] is not None and not row["uncounted"]:
            assert row["bytes_sent"] == row["predicted_bytes_sent"], name


def test_training_goes_on_with_the_machine_that_is_left(tmp_path):
    common = ["lessons/scripts/train.py", "--width", "8", "--steps", "40000", "--batch", "32"]
    common += ["--save", "20", "--report", "1000", "--evaluate", "100000", "--method", "zero/3"]
    with Machines() as machines:
        machines.use(OPEN_MPI)
        saved = tmp_path / "run" / "checkpoints"
        words = ["run", "-n", "4", "--hosts", machines.hosts, "--restarts", "1"]
        words += ["--min-ranks", "2", *common, "--out", str(tmp_path / "run")]
        with machines.start(*words, open_mpi=OPEN_MPI) as job:
            while not (saved.is_dir() and any(saved.iterdir())) and job.poll() is None:
                time.sleep(0.1)
            machines.cut()
            lines = []
            for line in job.stdout:
                lines.append(line)
                if "going on from step" in line:
                    break
            job.terminate()
            rest, _ = job.communicate(timeout=60)
        printed = "".join(lines) + rest
        assert "the machine machine1 cannot be reached any longer" in printed, printed
        assert "restart 1 of 1, with 2 ranks" in printed, printed
        assert "on 2 ranks" in lines[-1], printed
        until = time.monotonic() + 60
        while running(str(tmp_path)) and time.monotonic() < until:
            time.sleep(0.5)
        assert running(str(tmp_path)) == []
