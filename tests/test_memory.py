"""What ``mpi_environment`` asks of glibc: arrays in huge pages, and no page faults in later steps.

Where the kernel has no huge pages, or the C library is not glibc, there is nothing to test.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from minidist import cli
from minidist.comm.launcher import TUNABLES, glibc_tunables, mpi_environment
from minidist.run.launcher import Launcher
from minidist.run.supervisor import Job

ROOT = Path(__file__).parents[1]
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
HUGE_PAGES = SETTING.exists() and "[never]" not in SETTING.read_text()
LIBRARY, VERSION = platform.libc_ver()
NEW_GLIBC = LIBRARY == "glibc" and tuple(map(int, VERSION.split("."))) >= (2, 35)

needs_glibc = pytest.mark.skipif(not NEW_GLIBC, reason="not glibc 2.35 or later")

# Prints KB of the heap in huge pages, with 16 MB in arrays that are short of the 4 MB for which
# NumPy itself asks for huge pages; then page faults in 10 steps that allocate and free 112 MB.
PROGRAM = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np

make = lambda: [np.ones(1 << 20, np.uint8) for _ in range(16)]
arrays = ThreadPoolExecutor(1).submit(make).result() if "thread" in sys.argv else make()
huge, inside = 0, False
for line in open("/proc/self/smaps"):
    first, *rest = line.split()
    if "-" in first and not first.endswith(":"):
        inside = bool(rest) and rest[-1] == "[heap]"
    elif inside and first == "AnonHugePages:":
        huge += int(rest[0])

def steps(count):
    for _ in range(count):
        [*(np.ones(3 << 20, np.uint8) for _ in range(16)), np.ones(64 << 20, np.uint8)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

print(huge, -steps(2) + steps(10))
"""


def heap(environment: dict[str, str], *arguments: str) -> tuple[int, int]:
    """KB in huge pages, and page faults."""
    command = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    huge, faults = map(int, done.stdout.split())
    return huge, faults


def without_tunables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}


@needs_glibc
@pytest.mark.skipif(not HUGE_PAGES, reason="this kernel gives no huge pages")
@pytest.mark.parametrize("stream", ["main", "thread"])
def test_small_arrays_lie_in_huge_pages(stream):
    kilobytes, _ = heap(mpi_environment(), stream)
    assert kilobytes >= 8192, f"KB in huge pages, of 16 MB in arrays: {kilobytes}"


@needs_glibc
@pytest.mark.parametrize("stream", ["main", "thread"])
def test_freed_memory_is_kept_for_the_next_step(stream):
    _, usual = heap(without_tunables(), stream)
    _, faults = heap(mpi_environment(), stream)
    assert faults < 100 < usual, f"page faults: {faults}, and {usual} without the tunables"


def test_what_the_user_has_set_stays():
    name, other = "glibc.malloc.top_pad", "glibc.cpu.x86_shstk=off"
    settings = glibc_tunables(f"{name}=0:{other}").split(":")
    assert settings[:2] == [f"{name}=0", other]
    assert sum(setting.startswith(f"{name}=") for setting in settings) == 1
    assert len(settings) == len(TUNABLES) + 1
    assert glibc_tunables(":".join(settings)) == ":".join(settings)


def test_the_docs_give_the_same_setting():
    text = (ROOT / "docs" / "collectives.md").read_text()
    (line,) = re.findall(r"^export GLIBC_TUNABLES=(\S+)$", text, re.M)
    assert line == glibc_tunables()


@pytest.mark.parametrize(
    "command",
    [
        ["compare", "--world", "mpi"],
        ["trace", __file__],
        ["trace", __file__, "--world", "mpi"],
        ["bench", "engine"],
        ["bench", "collectives"],
        ["bench", "scaling"],
    ],
    ids=lambda command: " ".join(Path(word).name for word in command),
)
def test_commands_set_it_for_what_they_start(command, monkeypatch, tmp_path):
    started = []

    def run(command, env, check):
        started.append(env)
        return subprocess.CompletedProcess(command, 0)

    def run_job(job):
        started.append(job.environment)
        return 0

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(cli.compare, "find_mpiexec", lambda: "mpiexec")
    monkeypatch.setattr(Job, "run", run_job)
    launcher = Launcher("mpiexec", "MPICH")
    monkeypatch.setattr("minidist.run.supervisor.find_launcher", lambda path: launcher)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.top_pad=0")
    cli.main([*command, "--out", str(tmp_path)])
    (environment,) = started
    assert environment["GLIBC_TUNABLES"] == glibc_tunables("glibc.malloc.top_pad=0")
    assert environment["OMP_NUM_THREADS"] == ("3" if command[0] == "bench" else "1")
