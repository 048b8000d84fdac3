"""What ``minidist run`` and ``minidist doctor`` take, refuse, clean up and say, without any MPI."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import stat
import subprocess
import sys
import threading
import time

import pytest

from minidist.comm import CommError
from minidist.comm.mpi import room
from minidist.run import command, doctor, leftovers
from minidist.run.lines import Lines
from minidist.run.output import Output
from tests.mpi.run import ROOT


@pytest.fixture
def shared(tmp_path, monkeypatch):
    """A folder in place of /dev/shm, with a file in use, one of a crashed job, and another's."""
    folder = tmp_path / "shm"
    folder.mkdir()
    for name in ("mpich_shm_in_use", "mpich_shm_left", "vader_segment.left", "somebody_elses"):
        (folder / name).write_bytes(bytes(5000))
        os.utime(folder / name, (time.time() - 10,) * 2)
    monkeypatch.setattr(room, "SHARED", str(folder))
    monkeypatch.setattr(leftovers, "SHARED", str(folder))
    monkeypatch.setattr(leftovers.leftovers, "__defaults__", (0.0, str(folder), leftovers.YOUNG))
    with (folder / "mpich_shm_in_use").open():
        yield folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_leftovers_are_an_mpis_files_that_nobody_uses(shared):
    found = leftovers.leftovers()
    assert sorted(one.path.name for one in found) == ["mpich_shm_left", "vader_segment.left"]
    assert leftovers.leftovers(since=time.time() - 5) == []
    assert leftovers.remove(found) >= 10_000
    assert names(shared) == ["mpich_shm_in_use", "somebody_elses"]


def test_what_a_job_leaves_is_removed_at_its_end_crashed_or_not(shared):
    with pytest.raises(KeyError), leftovers.removed():
        (shared / "mpich_shm_new").write_bytes(bytes(100))
        raise KeyError
    assert "mpich_shm_new" not in names(shared)
    assert "mpich_shm_left" in names(shared), "another job's, from before"


def test_a_file_of_a_rank_that_ends_after_its_launcher_is_removed_too(shared):
    with leftovers.removed():
        mapped = (shared / "mpich_shm_dying").open("wb")
        threading.Timer(leftovers.YOUNG / 4, mapped.close).start()
    assert names(shared).count("mpich_shm_dying") == 0


def findings(monkeypatch, **more):
    for name in [name for name in os.environ if name.startswith(("MINIDIST", "SLURM"))]:
        monkeypatch.delenv(name)
    for name, value in more.items():
        monkeypatch.setenv(name, value)
    return list(doctor.look())


def the(found, name):
    (one,) = [one for one in found if one.name == name]
    return one


def test_doctor_says_what_to_do_by_symptom(shared, monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "mpi4py_version", lambda: "MPICH Version: 5.0.2\nmore")
    monkeypatch.setattr(doctor, "mpi4py_library", lambda: "MPICH")
    monkeypatch.setattr(doctor, "candidates", lambda: ["/usr/bin/mpiexec"])
    monkeypatch.setattr(doctor, "launcher_library", lambda path: "Open MPI")
    monkeypatch.setattr(doctor, "shared_memory_left", lambda: 5e6)
    (tmp_path / "tuning.json").write_text("[1, 2]")
    tuning = str(tmp_path / "tuning.json")
    found = findings(monkeypatch, MINIDIST_TUNING=tuning, SLURM_STEP_NUM_TASKS="1")
    assert "MPICH Version: 5.0.2" in the(found, "mpi4py").what
    assert "N jobs of one rank each" in the(found, "mpiexec").do
    assert "leftovers of a shell" in the(found, "launcher").what
    assert the(found, doctor.SHARED).do.startswith("make it larger")
    assert "4 ranks" in the(found, doctor.SHARED).what
    assert the(found, "leftovers").what.startswith("2 files of jobs that crashed")
    assert the(found, "leftovers").do == "minidist doctor --clean"
    assert tuning in the(found, "tuning").what
    assert the(found, "tuning").do
    assert the(found, "MINIDIST_TUNING").what == tuning
    assert f"{len(os.sched_getaffinity(0))} for this process" in the(found, "cores").what


def test_doctor_without_an_mpi_and_with_the_right_one(shared, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "mpi4py_version", lambda: "")
    monkeypatch.setattr(doctor, "mpi4py_library", lambda: "")
    monkeypatch.setattr(doctor, "candidates", list)
    found = findings(monkeypatch, MINIDIST_TUNING=os.devnull)
    assert "only the local world runs" in the(found, "mpi4py").do
    assert "pip install" in the(found, "mpiexec").do

    monkeypatch.setattr(doctor, "mpi4py_version", lambda: "Open MPI v5.0.11, package: x")
    monkeypatch.setattr(doctor, "mpi4py_library", lambda: "Open MPI")
    monkeypatch.setattr(doctor, "candidates", lambda: ["/a/mpiexec", "/b/mpiexec"])
    library = {"/a/mpiexec": "Open MPI", "/b/mpiexec": "MPICH"}
    monkeypatch.setattr(doctor, "launcher_library", library.get)
    monkeypatch.setattr(doctor, "shared_memory_left", lambda: 1e10)
    assert doctor.show() == 1, "there are leftovers"
    assert "→ minidist doctor --clean" in capsys.readouterr().out
    assert command.run_doctor(["--clean"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("removed 2 files") and "→" not in printed
    assert "MPICH (of another MPI than mpi4py's, not used by minidist run)" in printed


REFUSED = {
    "-n 0 this.py": "a job needs at least one rank, not 0",
    "--restarts -1 this.py": "--restarts must be 0 or more, not -1",
    "--threads 0 this.py": "--threads must be at least 1, not 0",
    "-n 2 --min-ranks 3 this.py": "--min-ranks must be 1 to 2, the ranks, not 3",
    "--hosts nowhere this.py": "there is no host file nowhere",
    "--mpiexec nowhere this.py": "--mpiexec nowhere: there is no such program",
    "-n 2 nowhere.py": "there is no script nowhere.py",
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_what_cannot_be_started_is_refused_in_a_line(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "this.py").touch()
    assert command.run(arguments.split()) == 2
    assert capsys.readouterr().err == f"minidist run: {REFUSED[arguments]}\n"


def test_a_job_without_room_to_start_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "shared_memory_left", lambda: 1e6)
    monkeypatch.delitem(sys.modules, "mpi4py.MPI", raising=False)
    with pytest.raises(CommError, match=r"1.0 MB left, and 4 ranks need about 4 MB to start"):
        room.check_room(4)


def test_a_rank_that_says_all_at_once_is_heard():
    """A short program's first and last word may arrive together."""
    with Lines(2, "token", everywhere=False) as lines:
        port = int(lines.address.split(":")[1])
        for number, token in enumerate(("token", "another")):
            with socket.create_connection(("127.0.0.1", port)) as line:
                hello = {"hello": number, "token": token, "pid": 1 << 30, "machine": "m"}
                done = {"done": True}
                line.sendall(b"".join(json.dumps(m).encode() + b"\n" for m in (hello, done)))
                for _ in range(5):
                    lines.listen(0.02)
        assert lines.ranks[0].done
        assert not lines.ranks[1].done, "it does not know the token"
        assert lines.first_failure() is None


def test_what_a_launcher_says_of_itself_is_kept_for_a_job_that_does_not_start():
    kept, into = [], io.BytesIO()
    text = b"[mpiexec@vm] no such host\n[vm:1] /a/osc_ucx_component.c:375  Error\n \n\0\nprinted\n"
    output = Output(io.BytesIO(text), into, kept)
    while output.read():
        continue
    assert into.getvalue() == b"printed\n"
    assert b"".join(kept) == text


SRUN = """#!/bin/sh
# In place of srun --pty, without PMI: -n N, and one process in an interactive shell's environment.
shift 2
export SLURM_JOB_ID=1 SLURM_STEP_NUM_TASKS=1 SLURM_PROCID=0 SLURM_PTY_PORT=1
exec "$@"
"""
ENDS = {
    "import minidist": ("0", ""),
    "import atexit, minidist; atexit.register(lambda: 1 / 0)": (
        "1", r"(?s)rank 0 failed at its end:.*ZeroDivisionError",
    ),
    "import minidist, threading; threading.Thread(target=lambda: 1 / 0).start()": (
        "1", r"(?s)rank 0 failed, so the whole job ends:.*ZeroDivisionError",
    ),
    "import sys; sys.exit('a text')": ("1", r"rank 0 left with status 1 \(a text\), at .*:1"),
}  # fmt: skip


def run(tmp_path, ranks, program="import minidist", pmi=""):
    """``minidist run`` through a stand-in for srun, which starts one process."""
    (tmp_path / "srun").write_text(SRUN.replace("exec", f"{pmi} exec"))
    (tmp_path / "srun").chmod(stat.S_IRWXU)
    (tmp_path / "script.py").write_text(program)
    words = ["run", "-n", str(ranks), "--mpiexec", "./srun", "script.py"]
    known = {key: value for key, value in os.environ.items() if not key.startswith("PMI")}
    return subprocess.run(
        [sys.executable, "-m", "minidist", *words],
        cwd=tmp_path, env=known | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_one_rank_where_two_were_asked_for_is_refused(tmp_path):
    done = run(tmp_path, 2, "print('never')")
    assert done.returncode == 2, done.stderr
    assert "2 ranks were asked for, and this process was started as one of 1: the" in done.stderr
    assert "never" not in done.stdout


@pytest.mark.parametrize("program", ENDS)
def test_no_end_is_taken_for_another(tmp_path, program):
    done = run(tmp_path, 1, program, "PMI_SIZE=1 PMI_RANK=0")
    status, text = ENDS[program]
    assert done.returncode == int(status), done.stderr
    assert re.search(text, done.stderr), done.stderr
