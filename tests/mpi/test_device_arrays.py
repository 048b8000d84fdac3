"""Arrays on a device (here a stand-in for a GPU) travel between real ranks through host memory."""

from __future__ import annotations

import json

from tests.mpi.run import ROOT, mpiexec, needs_mpi


@needs_mpi
def test_methods_on_a_device_equal_serial_and_stage_every_message():
    done = mpiexec(2, str(ROOT / "tests" / "gpu" / "two_ranks.py"), "strict")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["method"] for row in rows][:2] == ["DataParallel", "Overlapped"] and len(rows) == 6
    for row in rows:
        assert row["gap"] < 1e-12
        assert row["staged"] > row["bytes"] > 0, "what is sent and what is received"


@needs_mpi
def test_a_gpu_aware_mpi_is_given_the_arrays_themselves(monkeypatch):
    """The stand-in lets MPI read its memory, as a GPU-aware library reads a GPU's."""
    monkeypatch.setenv("MINIDIST_GPU_AWARE_MPI", "1")
    done = mpiexec(2, str(ROOT / "tests" / "gpu" / "two_ranks.py"), "strict")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 6
    for row in rows:
        assert row["gap"] < 1e-12
        assert row["staged"] == 0 < row["bytes"]
