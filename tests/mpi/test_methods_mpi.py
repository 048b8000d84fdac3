"""Every method on real MPI ranks: equal to serial, and to its own formula."""

from __future__ import annotations

import pytest

from minidist.parallel import METHODS
from minidist.privacy import PRIVATE_METHODS
from tests.mpi.run import mpiexec, needs_mpi
from tests.parallel.server.test_pushes import KINDS, possible


@needs_mpi
def LONG(ranks):  # noqa: N802
    """A number of ranks that is tried by ``make long``."""
    return pytest.param(ranks, marks=pytest.mark.long)


@pytest.mark.parametrize("ranks", [LONG(1), LONG(2), 3, LONG(4)])
def test_every_method_passes_every_check(ranks):
    done = mpiexec(ranks, "-m", "tests.mpi.methods_program", python=("-m", "mpi4py"))
    assert done.returncode == 0, done.stderr
    passed = done.stdout.splitlines()
    rows = METHODS | PRIVATE_METHODS
    assert passed == [f"passed {key} on {ranks} ranks" for key in rows if key != "serial"]


@needs_mpi
@pytest.mark.parametrize("ranks", [LONG(1), LONG(2), 3, LONG(4)])
def test_data_parallel_and_zero_in_every_variant(ranks):
    done = mpiexec(ranks, "-m", "tests.mpi.data_parallel_program")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["passed"]


@needs_mpi
def test_stale_synchronous_training_keeps_its_bound_and_its_record_on_real_ranks():
    done = mpiexec(4, "-m", "tests.mpi.stale_program", python=("-m", "mpi4py"))
    assert done.returncode == 0, done.stderr


@needs_mpi
@pytest.mark.parametrize("ranks", [2, LONG(4)])
def test_pushes_are_compressed_and_clipped_as_the_formula_says(ranks):
    done = mpiexec(ranks, "-m", "tests.mpi.servers_program")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"passed {kind}" for kind in KINDS if possible(kind, ranks)]


@needs_mpi
@pytest.mark.parametrize("how", ["killed", "crash"])
@pytest.mark.parametrize("key", ["bsp_sharded", "async", "async_colocated", "backup"])
def test_a_worker_that_dies_ends_the_job(key, how):
    done = mpiexec(4, "-m", "tests.mpi.servers_program", f"parameter_server/{key}", how, timeout=30)
    assert done.returncode != 0
    assert "finished" not in done.stdout
    text = "Killed" if how == "killed" else "Crash: power cut"
    assert text in done.stdout + done.stderr


@needs_mpi
@pytest.mark.parametrize("ranks", [LONG(1), LONG(2), LONG(3), 4])
def test_pipelines_of_every_model_and_schedule_equal_serial_bitwise(ranks):
    done = mpiexec(ranks, "-m", "tests.mpi.pipelines_program")
    assert done.returncode == 0, done.stderr
    names = ["mlp", "cnn", "gpt", "pipedream"]
    assert done.stdout.splitlines() == [f"passed {name} on {ranks} ranks" for name in names]


@needs_mpi
@pytest.mark.parametrize("ranks", [2, LONG(4)])
def test_ops_that_send_and_tensor_parallelism(ranks):
    done = mpiexec(ranks, "-m", "tests.mpi.tensor_program")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["passed"]


@needs_mpi
def test_meshes_of_four_ranks():
    done = mpiexec(4, "-m", "tests.mpi.mesh_program")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "passed 4 meshes of 4 ranks"
