"""``minidist bench``: measure this machine. Each bench parses its own arguments."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from importlib import import_module

from minidist.comm.launcher import launched_size, mpi_environment

# Benches parse their own arguments: the module with run(arguments), and a description.
BENCHES = {
    "collectives": (
        "minidist.bench.collectives",
        "every algorithm at every size, compared with the MPI library and plain messages",
    ),
    "engine": ("minidist.bench.engine", "a training step, against PyTorch's and the matmuls alone"),
    "predicted": (
        "minidist.bench.predicted",
        "the simulated seconds of a step, compared with those measured on 1 and 2 MPI ranks",
    ),
    "requests": (
        "minidist.bench.requests",
        "many requests to a GPT, on one rank and on several: throughput and waiting times",
    ),
    "scaling": ("minidist.bench.scaling", "samples a second on more ranks, against PyTorch's DDP"),
}


def add(commands: argparse._SubParsersAction) -> None:
    bench = commands.add_parser("bench", help="measure this machine; compare with predictions")
    kinds = bench.add_subparsers(dest="what", required=True, metavar="WHAT")
    for name, (_, what) in BENCHES.items():
        kinds.add_parser(name, help=what)


def run(arguments: list[str]) -> int:
    """Run a bench with one thread, unless OMP_NUM_THREADS is set.

    It runs in a new process, because libraries read the environment when they start.
    """
    environment = mpi_environment(os.environ.get("OMP_NUM_THREADS", 1))
    if launched_size() is None and os.environ != environment:
        command = [sys.executable, "-m", "minidist", *arguments]
        return subprocess.run(command, env=environment, check=False).returncode
    return import_module(BENCHES[arguments[1]][0]).run(arguments[2:])
