"""The ``minidist`` command; each subcommand is a module here.

A subcommand parses its arguments and calls a function that can also be called from Python.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from minidist import __version__
from minidist.cli import bench, compare, compress, generate, lessons, plan, trace
from minidist.comm.launcher import launched_size
from minidist.comm.mpi.world import MpiWorld
from minidist.exercises import command as exercises
from minidist.run import command as run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    try:
        status = _command(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # its reader, such as `| head`, has closed the pipe: say no more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _command(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="minidist",
        description="Distributed deep learning from scratch: every method of parallel training, "
        "readable and compared.",
    )
    parser.add_argument("--version", action="version", version=f"minidist {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("run", help="run a script on MPI ranks, and report what goes wrong")
    commands.add_parser("doctor", help="check this machine's MPI, and say what to do")
    for command in (compare, trace, bench, plan, lessons, exercises, compress, generate):
        command.add(commands)
    if arguments[:1] == ["bench"] and arguments[1:2] and arguments[1] in bench.BENCHES:
        return bench.run(arguments)
    if arguments[:1] == ["run"]:
        return run_command.run(arguments[1:])
    if arguments[:1] == ["doctor"]:
        return run_command.run_doctor(arguments[1:])
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    options = parser.parse_args(own)
    options.arguments = arguments[len(own) + 1 :]  # of a script, after --
    try:
        return options.run(options, arguments)
    except ValueError as error:
        if launched_size() not in (None, 1) and MpiWorld().rank != 0:
            return 2
        print(f"minidist {options.command}: {error}", file=sys.stderr)
        return 2
