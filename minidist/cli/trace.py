"""``minidist trace``: run a script, and draw the timelines of its ranks."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from minidist.cli.terminal import ranks_of
from minidist.comm.launcher import mpi_environment
from minidist.run.supervisor import start


def add(commands: argparse._SubParsersAction) -> None:
    trace = commands.add_parser(
        "trace",
        help="run a script, and draw the timelines of its ranks",
        description="Run a lesson or script. For each launch() in it, write a picture of the "
        "timelines of all ranks with their messages (trace-N.png; the middle part, if the run is "
        "long), and the whole trace for https://ui.perfetto.dev (trace-N.json). Put arguments of "
        "the script after --.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    trace.add_argument("script", help="a Python file that calls minidist.launch")
    trace.add_argument(
        "--ranks",
        type=int,
        default=argparse.SUPPRESS,
        help="how many ranks (default: the script's own; with --world mpi: 4)",
    )
    trace.add_argument(
        "--world",
        choices=("local", "mpi"),
        default="local",
        help="local: in one process, on a virtual clock; mpi: one process a rank",
    )
    trace.add_argument(
        "--mesh", default="", help="for a script with --mesh: a mesh such as dp=2,pp=2,tp=2"
    )
    trace.add_argument("--out", default="out/trace", help="folder to write to")
    trace.set_defaults(run=run)


def run(options: argparse.Namespace, arguments: list[str]) -> int:
    from minidist.comm.launcher import TRACE_FOLDER, TRACE_RANKS

    script, folder = Path(options.script), Path(options.out).resolve()
    if not script.is_file():
        raise ValueError(f"there is no script {script}")
    ranks = getattr(options, "ranks", None)
    if options.mesh:
        ranks = ranks_of(options.mesh, ranks, arguments)
        options.arguments = ["--mesh", options.mesh, *options.arguments]
    if ranks is not None and ranks < 1:
        raise ValueError(f"--ranks must be at least 1, not {ranks}")
    for old in [*folder.glob("trace-*.json"), *folder.glob("trace-*.png")]:
        old.unlink()
    environment = mpi_environment() | {TRACE_FOLDER: str(folder)}
    command = [sys.executable, str(script), *options.arguments]
    if options.world == "mpi":
        status = start(command[1:], ranks or 4, threads=1, extra={TRACE_FOLDER: str(folder)})
    else:
        if ranks is not None:
            environment[TRACE_RANKS] = str(ranks)
        status = subprocess.run(command, env=environment, check=False).returncode
    found = sorted(folder.glob("trace-*"))
    for path in found:
        print(f"wrote {path}")
    if not found:
        print(f"minidist trace: {script} never called launch()", file=sys.stderr)
    return status or int(not found)
