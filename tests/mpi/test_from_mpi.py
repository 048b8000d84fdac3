"""``Comm.from_mpi``: a user's own mpi4py program takes our pieces."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from minidist import Comm
from minidist.comm.errors import CommError
from tests.mpi.run import ROOT, mpiexec, needs_mpi


@needs_mpi
@pytest.mark.parametrize("ranks", [3, pytest.param(1, marks=pytest.mark.long)])
def test_collectives_and_methods_in_a_program_of_mpi4py(ranks):
    done = mpiexec(ranks, str(Path(__file__).parent / "from_mpi_program.py"), python=())
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{ranks} ranks: all is well" in done.stdout


@needs_mpi
def test_the_program_in_the_readme_runs_under_mpi(tmp_path):
    programs = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    (program,) = [text for text in programs if "from_mpi" in text]
    (tmp_path / "sum.py").write_text(program)
    done = mpiexec(2, str(tmp_path / "sum.py"), python=())
    assert done.returncode == 0, done.stderr
    printed = "1.0 4000000 bytes sent\n" * 2  # the launcher may mix the pieces of two ranks
    assert sorted(done.stdout) == sorted(printed), done.stdout


def test_what_is_no_communicator_is_refused_without_mpi():
    with pytest.raises(CommError, match="needs a communicator of mpi4py, not str"):
        Comm.from_mpi("world")
