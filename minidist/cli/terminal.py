"""Shared by several commands: the console, progress bars, and starting MPI ranks."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from math import prod

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from minidist.comm.launcher import launched_size
from minidist.run.supervisor import start


def start_mpi(ranks: int | None, arguments: list[str]) -> int:
    """Run the same command on ``ranks`` MPI processes; they print to this terminal."""
    terminal = {}
    if sys.stdout.isatty():  # behind mpiexec, stdout is a pipe and not the terminal
        terminal["MINIDIST_TERMINAL"] = str(shutil.get_terminal_size().columns)
    return start(["-m", "minidist", *arguments], ranks or 4, threads=1, extra=terminal)


def console_for(quiet: bool) -> Console:
    """A console; with colours and progress bars only on a terminal, also through mpiexec."""
    width = os.environ.get("MINIDIST_TERMINAL")
    if width:
        return Console(quiet=quiet, force_terminal=True, width=int(width))
    # Some launchers give ranks a terminal even if the launcher's output goes to a file.
    watched = sys.stdout.isatty() and launched_size() is None
    return Console(quiet=quiet, force_terminal=watched, width=None if watched else 170)


class Live:
    """Progress: a bar for each method; without a terminal, a line when a method is complete."""

    def __init__(self, console: Console, methods: list[str], steps: int) -> None:
        self.console = console
        self.names = {key: named(key) for key in methods}
        self.width = width = max(map(len, self.names.values()))
        self.bars = Progress(
            TextColumn(f"{{task.description:{width}}}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            console=console,
            disable=not console.is_terminal or console.quiet,
        )
        self.tasks = {
            key: self.bars.add_task(name, total=steps, loss="") for key, name in self.names.items()
        }

    def __enter__(self) -> Live:
        self.bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bars.stop()

    def update(self, key: str, done: int, steps: int, loss: float) -> None:
        self.bars.update(self.tasks[key], completed=done, loss=f"{loss:.4f}")
        if not self.console.is_terminal and done == steps:
            name = f"{self.names[key]:{self.width}}"
            self.console.print(f"{name} {done} steps, loss {loss:.4f}")


def named(key: str) -> str:
    """A row's name, by the words of the table: "zero/1" is "ZeRO stage 1"."""
    from minidist.compare.words import label

    family, slash, variant = key.partition("/")
    return label({"method": family, "variant": variant}) if slash else key


def ranks_of(mesh: str, ranks: int | None, arguments: Sequence[str]) -> int:
    """The number of ranks of a mesh. Raises ValueError if ``--ranks`` is another number."""
    from minidist.parallel.mesh.mesh import parse

    size = prod(parse(mesh).values())
    if any(one.startswith("--ranks") for one in arguments) and ranks != size:
        raise ValueError(f"--mesh {mesh} has {size} ranks, and --ranks says {ranks}")
    return size
