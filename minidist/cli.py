"""The ``minidist`` command.

Each subcommand parses its arguments, and calls a function that could be called without it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from minidist import __version__
from minidist.comm.launch import find_mpiexec, launched_size, mpi_environment
from minidist.comm.local import LocalWorld
from minidist.comm.mpi import MpiWorld


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="minidist",
        description="Distributed deep learning from scratch: every method of parallel training, "
        "readable and compared.",
    )
    parser.add_argument("--version", action="version", version=f"minidist {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_compare(commands)
    options = parser.parse_args(arguments)
    try:
        return options.run(options, arguments)
    except ValueError as error:
        if launched_size() not in (None, 1) and MpiWorld().rank != 0:
            return 2
        print(f"minidist {options.command}: {error}", file=sys.stderr)
        return 2


def _add_compare(commands: argparse._SubParsersAction) -> None:
    from minidist.compare import TASKS
    from minidist.parallel import METHODS

    compare = commands.add_parser(
        "compare",
        help="train one model in every way, side by side",
        description="Train one model by every method, on the same data from the same seed, and "
        "compare: losses and parameters with serial training; bytes, messages, memory and idle "
        "time with each method's formula. Writes compare.json and compare.png.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    compare.add_argument(
        "--methods", default="all", help=f"comma-separated, among: all, {', '.join(METHODS)}"
    )
    compare.add_argument("--model", default="mlp", choices=sorted(TASKS))
    compare.add_argument("--ranks", type=int, default=4, help="how many ranks")
    compare.add_argument(
        "--world",
        choices=("auto", "local", "mpi"),
        default="auto",
        help="local: in this process, on a virtual clock; mpi: one process a rank; "
        "auto: mpi if an mpiexec is found",
    )
    compare.add_argument("--steps", type=int, default=50, help="training steps of each method")
    compare.add_argument("--batch", type=int, default=128, help="samples in the global batch")
    compare.add_argument("--dtype", default="float32", choices=("float32", "float64"))
    compare.add_argument("--seed", type=int, default=0)
    compare.add_argument("--out", default="out/compare", help="folder to write to")
    compare.set_defaults(run=_compare)


def _compare(options: argparse.Namespace, arguments: list[str]) -> int:
    from minidist import compare, report

    methods = compare.names(options.methods)  # complain before anything is launched
    if options.ranks < 1:
        raise ValueError(f"--ranks must be at least 1, not {options.ranks}")
    if not 1 <= options.batch <= 10000:
        raise ValueError(f"--batch must be 1 to 10000, the training images, not {options.batch}")
    launched = launched_size()
    mpiexec = find_mpiexec()
    if launched is None and (options.world == "mpi" or (options.world == "auto" and mpiexec)):
        if mpiexec is None:
            raise ValueError('--world mpi needs an mpiexec: pip install "minidist[mpich]"')
        return _start_mpi(mpiexec, options.ranks, arguments)
    world = LocalWorld() if launched is None or options.world == "local" else MpiWorld()
    console = _console(quiet=isinstance(world, MpiWorld) and world.rank != 0)
    ranks = launched or options.ranks
    where = (
        f"{ranks} processes of {world.library}"
        if isinstance(world, MpiWorld)
        else f"{ranks} ranks in this process, times are virtual"
        + ("" if mpiexec or options.world == "local" else ' (no mpiexec found: "minidist[mpich]")')
    )
    console.print(f"[bold]minidist {__version__}[/bold]  {world.name} world: {where}")
    with _Live(console, methods, options.steps) as live:
        result, timelines = compare.compare(
            methods,
            options.model,
            options.ranks,
            world,
            options.steps,
            options.batch,
            options.dtype,
            options.seed,
            live.update,
        )
    if console.quiet:
        return 0
    paths = report.save(result, timelines, options.out)
    report.show(result, paths, console)
    cores = len(os.sched_getaffinity(0))
    if isinstance(world, MpiWorld) and ranks > cores:
        console.print(
            f"{ranks} ranks share {cores} cores: seconds and idle time are of a crowded machine, "
            "while the predictions give each rank a core. Bytes, messages and memory are exact."
        )
    return 0


def _start_mpi(mpiexec: str, ranks: int, arguments: list[str]) -> int:
    """Run this same command on ``ranks`` processes; their output is ours."""
    command = [mpiexec, "-n", str(ranks), sys.executable, "-m", "mpi4py", "-m", "minidist"]
    environment = mpi_environment()
    if sys.stdout.isatty():  # mpiexec puts a pipe between us and the terminal
        environment["MINIDIST_TERMINAL"] = str(os.get_terminal_size().columns)
    return subprocess.run([*command, *arguments], env=environment, check=False).returncode


def _console(quiet: bool) -> Console:
    """Colours and moving bars only where a person watches, who may sit behind an mpiexec."""
    width = os.environ.get("MINIDIST_TERMINAL")
    if width:
        return Console(quiet=quiet, force_terminal=True, width=int(width))
    # Some launchers give their ranks a terminal although their own output goes to a file.
    watched = sys.stdout.isatty() and launched_size() is None
    return Console(quiet=quiet, force_terminal=watched, width=None if watched else 150)


class _Live:
    """Progress, a bar for each method; where there is no terminal, a line when one is done."""

    def __init__(self, console: Console, methods: list[str], steps: int) -> None:
        self.console = console
        self.bars = Progress(
            TextColumn("{task.description:24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            console=console,
            disable=not console.is_terminal or console.quiet,
        )
        self.tasks = {
            key: self.bars.add_task(key.replace("/", " "), total=steps, loss="") for key in methods
        }

    def __enter__(self) -> _Live:
        self.bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bars.stop()

    def update(self, key: str, done: int, steps: int, loss: float) -> None:
        self.bars.update(self.tasks[key], completed=done, loss=f"{loss:.4f}")
        if not self.console.is_terminal and done == steps:
            self.console.print(f"{key.replace('/', ' '):24} {done} steps, loss {loss:.4f}")
