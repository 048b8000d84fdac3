"""Measure every fault of program.py: what happens, with which status, in how many seconds.

    python -m tests.faults.table out/faults.json      # with this Python's MPI, and the local world
    python -m tests.faults.table --page FILE FILE     # docs/faults.md's table, of several libraries

A rank may wait 5 s in one call here, in place of ten minutes; whoever does not end in 45 s hangs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from minidist.comm.environment import find_mpiexec, mpi_environment
from minidist.run import leftovers
from minidist.run.launcher import mpi4py_library
from tests.mpi.run import ROOT

PROGRAM = "tests/faults/program.py"
LIMIT = 45
FAULTS = [
    "none", "raise before the first", "raise in a launch", "raise between two",
    "raise after the last", "skip a launch", "exit 0", "exit 3", "exit before the first",
    "exit between two", "os._exit(0)", "SIGKILL", "SIGSTOP", "sleep in a launch",
    "sleep between two", "sleep at the end of MPI", "both send first", "length", "a scalar",
    "root out of range",
    "other shape", "other dtype", "other operation", "other reduction", "other algorithm",
    "message of another dtype", "isend that nobody receives", "irecv that nobody sends",
    "raise in a thread", "raise at exit",
]  # fmt: skip
DEBUG = (
    "message of another dtype",
    "other shape",
    "other dtype",
    "other operation",
    "other reduction",
    "other algorithm",
)
WORDS = (
    "CollectiveMismatch", "not at the same place", "ended without an exception",
    "cannot be reached",
    "has waited more than", "left with status", "left by sys.exit", "messages were not received",
    "Deadlock", "where it expected", "ranks are 0 to", "takes an array", "lost my way",
    "raised before", "raised between", "raised after", "SystemExit", "has crashed",
    "Stack (most recent call first)", "must agree on dtype", "failed at its end",
    "before its first launch",
    "ZeroDivisionError",
)  # fmt: skip


def measure(command: list[str], environment: dict[str, str]) -> dict[str, object]:
    """Run a command: its status, seconds, and the words of its report."""
    start = time.monotonic()
    with leftovers.removed(), subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            printed, _ = process.communicate(timeout=LIMIT)
            status: int | str = process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            printed, status = process.communicate()[0], "hangs"
    said = [word for word in WORDS if word in printed]
    return {"status": status, "seconds": round(time.monotonic() - start, 1), "said": said[:1]}


def table() -> dict[str, dict[str, dict[str, object]]]:
    """Every fault under minidist run, plain mpirun, and in the local world."""
    more = {"MINIDIST_TIMEOUT": "5", "PYTHONPATH": str(ROOT), "MINIDIST_TUNING": os.devnull}
    found = {}
    for fault in FAULTS:
        debug = {"MINIDIST_DEBUG": "1"} if fault in DEBUG else {}
        known = mpi_environment() | more | debug
        python, program = sys.executable, [PROGRAM, fault]
        row = {"run": [python, "-m", "minidist", "run", "-n", "3", *program]}
        row["mpirun"] = [str(find_mpiexec()), "-n", "3", python, *program]
        if fault not in (
            "os._exit(0)",
            "SIGKILL",
            "SIGSTOP",
            "skip a launch",
            "raise in a thread",
            "raise at exit",
        ) and not (fault.startswith(("sleep", "exit b"))):
            row["local"] = [python, *program]
        found[fault] = {how: measure(command, known) for how, command in row.items()}
        print(fault, found[fault], flush=True)
    return found


def page(paths: list[str]) -> str:
    """The table of docs/faults.md."""
    libraries = {name: rows for path in paths for name, rows in json.loads(Path(path).read_text())}
    heads = ["fault", *(f"{name}, {how}" for name in libraries for how in ("run", "mpirun"))]
    lines = [f"| {' | '.join([*heads, 'local world'])} |", "|---" * (len(heads) + 1) + "|"]
    for fault in FAULTS:
        cells = [libraries[name][fault].get(how) for name in libraries for how in ("run", "mpirun")]
        cells.append(next(iter(libraries.values()))[fault].get("local"))
        lines.append(f"| {' | '.join([fault, *map(cell, cells)])} |")
    return "\n".join(lines)


def cell(found: dict[str, object] | None) -> str:
    if found is None:
        return "-"
    said = ": " + ", ".join(found["said"]) if found["said"] else ""
    return f"{found['status']}, {found['seconds']} s{said}"


if __name__ == "__main__":
    if sys.argv[1] == "--page":
        print(page(sys.argv[2:]))
    else:
        Path(sys.argv[1]).write_text(json.dumps([[mpi4py_library(), table()]], indent=1))
