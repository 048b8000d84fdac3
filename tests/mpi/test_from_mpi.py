"""``Comm.from_mpi``: a user's own mpi4py program takes our pieces."""

from __future__ import annotations

from pathlib import Path

import pytest

from minidist import Comm
from minidist.comm.errors import CommError
from tests.mpi.run import mpiexec, needs_mpi


@needs_mpi
@pytest.mark.parametrize("ranks", [3, pytest.param(1, marks=pytest.mark.long)])
def test_collectives_and_methods_in_a_program_of_mpi4py(ranks):
    done = mpiexec(ranks, str(Path(__file__).parent / "from_mpi_program.py"), python=())
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{ranks} ranks: all is well" in done.stdout


def test_what_is_no_communicator_is_refused_without_mpi():
    with pytest.raises(CommError, match="needs a communicator of mpi4py, not str"):
        Comm.from_mpi("world")
