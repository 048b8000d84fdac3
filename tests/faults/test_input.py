"""The input of ``minidist run`` is rank 0's: a file, a pipe, a terminal, none; whole, and ended."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading

import pytest

from minidist.run.input import Input
from tests.mpi.run import ROOT

RANK = """
from minidist.run.input import read_by_this_rank
read_by_this_rank()
import sys
print({})
"""
SUM = "sum(map(int, sys.stdin))"


def said_by_rank_0(what=SUM):
    """What a rank prints that is started while this process's input is passed on."""
    with Input() as more:
        done = subprocess.run(
            [sys.executable, "-c", RANK.format(what)],
            env=os.environ | more | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, timeout=30, check=True,
        )  # fmt: skip
    return done.stdout.strip()


def numbers(path, count):
    path.write_text("".join(f"{number}\n" for number in range(count)))
    return path.open()


@pytest.mark.parametrize("count", [0, 3, 100_000])  # the last is longer than a pipe holds
def test_a_file_is_read_whole_and_ends(count, tmp_path, monkeypatch):
    with numbers(tmp_path / "numbers", count) as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert said_by_rank_0() == str(count * (count - 1) // 2)


def test_a_pipe_ends_when_its_writer_closes_it(monkeypatch):
    reading, writing = map(os.fdopen, os.pipe(), "rw")
    monkeypatch.setattr(sys, "stdin", reading)
    writing.write("12\n")
    writing.flush()
    threading.Timer(0.3, lambda: (writing.write("30\n"), writing.close())).start()
    assert said_by_rank_0() == "42"
    reading.close()


def test_without_an_input_the_rank_reads_its_end(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert said_by_rank_0() == "0"


def test_a_rank_that_does_not_read_waits_for_nothing(tmp_path, monkeypatch):
    with numbers(tmp_path / "numbers", 100_000) as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert said_by_rank_0("1") == "1"


def test_lines_typed_on_a_terminal_reach_rank_0_of_real_ranks(tmp_path):
    program = tmp_path / "adds.py"
    program.write_text(
        "import sys\nfrom minidist import launch\n"
        "def main(comm):\n"
        "    if comm.rank == 0:\n"
        "        print('type', flush=True)\n"
        f"        print('sum', {SUM}, flush=True)\n"
        "    comm.barrier()\n"
        "launch(main)\n"
    )
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(ROOT)
        os.execv(
            sys.executable,
            [sys.executable, "-m", "minidist", "run", "-n", "2", str(program)],
        )
    said = b""
    try:
        while b"type" not in said:
            said += os.read(terminal, 4096)
        os.write(terminal, b"12\n30\n\x04")  # and Ctrl-D
        while b"sum 42" not in said:
            said += os.read(terminal, 4096)
        assert os.waitpid(child, 0)[1] == 0
    except BaseException:
        os.kill(child, signal.SIGTERM)
        raise
    finally:
        os.close(terminal)
