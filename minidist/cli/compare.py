"""``minidist compare``: train one model by every method, and compare."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from minidist import __version__
from minidist.cli.terminal import Live, console_for, ranks_of, start_mpi
from minidist.comm.launcher import find_mpiexec, launched_size
from minidist.comm.local.world import LocalWorld
from minidist.comm.machine import Machine, profile
from minidist.comm.mpi.world import MpiWorld


def add(commands: argparse._SubParsersAction) -> None:
    from minidist.comm.machine import PROFILES
    from minidist.compare.rows import rows_of
    from minidist.compare.tasks import DEFAULT_TASK, TASKS

    rows = rows_of(TASKS[DEFAULT_TASK])
    families = dict.fromkeys(row.split("/")[0] for row in rows)
    compare = commands.add_parser(
        "compare",
        help="train one model by every method, and compare",
        description="Train one model by every method, on the same data from the same seed, and "
        "compare: losses and parameters with serial training; bytes, messages, memory and idle "
        "time with the predictions of each method's formula. Writes compare.json, compare.md and "
        "compare.png.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    compare.add_argument(
        "--methods",
        default="default",
        help="comma-separated: default (a dozen, one of each idea), all, families "
        f"({', '.join(families)}), rows such as pipeline/gpipe, and your own as module:name",
    )
    compare.add_argument(
        "--task",
        "--model",
        default=DEFAULT_TASK,
        help=f"model to train, with its data: {', '.join(TASKS)}, or your own as module:name",
    )
    compare.add_argument(
        "--ranks", type=int, default=argparse.SUPPRESS, help="how many ranks (default: 4)"
    )
    compare.add_argument(
        "--mesh",
        default="",
        help="add a row for this mesh, such as dp=2,pp=2,tp=2; it sets the number of ranks",
    )
    compare.add_argument(
        "--world",
        choices=("auto", "local", "mpi"),
        default="auto",
        help="local: in this process, on a virtual clock; mpi: one process a rank; "
        "auto: mpi if an mpiexec is found, and no machine is chosen",
    )
    compare.add_argument(
        "--machine",
        choices=PROFILES,
        default=None,
        help="in the local world: the machine whose speeds the clock uses",
    )
    compare.add_argument(
        "--slowdown",
        action="append",
        default=[],
        metavar="RANK=TIMES",
        help="in the local world: a rank that computes TIMES times slower (a straggler), such as "
        "3=4; may be given several times",
    )
    compare.add_argument("--steps", type=int, default=50, help="training steps of each method")
    compare.add_argument("--batch", type=int, default=128, help="samples in the global batch")
    compare.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "float64"),
        help="dtype of parameters, data and messages",
    )
    compare.add_argument(
        "--seed", type=int, default=0, help="seed of the data's order and all random numbers"
    )
    compare.add_argument(
        "--algorithms",
        metavar="FILE",
        help="compare.json of an earlier run: use the same all-reduce algorithms, so that sums "
        "have the same order",
    )
    compare.add_argument("--out", default="out/compare", help="folder to write to")
    compare.set_defaults(run=run)


def run(options: argparse.Namespace, arguments: list[str]) -> int:
    from minidist.compare import comparison, files, report
    from minidist.compare.tasks import task_of

    # All arguments are checked before anything is launched.
    options.ranks = getattr(options, "ranks", None)
    task = task_of(options.task)
    methods = options.methods.split(",")
    names = comparison.names(methods, task, options.mesh)
    if options.mesh:
        options.ranks = ranks_of(options.mesh, options.ranks, arguments)
    if options.ranks is not None and options.ranks < 1:
        raise ValueError(f"--ranks must be at least 1, not {options.ranks}")
    samples = len(task.data()[0])
    if not 1 <= options.batch <= samples:
        raise ValueError(
            f"--batch must be 1 to {samples}, the training samples, not {options.batch}"
        )
    if options.steps < 1:
        raise ValueError(f"compare needs at least one step, not {options.steps}")
    machine = machine_of(options.machine, options.slowdown)
    if machine is not None and options.world == "mpi":
        raise ValueError("--machine and --slowdown are for the local world: real ranks have theirs")
    algorithms = algorithms_of(options.algorithms)
    launched = launched_size()
    if launched is None:
        files.try_folder(options.out)
    mpiexec = find_mpiexec()
    local = options.world == "local" or machine is not None
    if launched is None and not local and (options.world == "mpi" or mpiexec):
        return start_mpi(options.ranks, arguments)
    if launched is not None and options.ranks not in (None, launched):
        raise ValueError(
            f"--ranks {options.ranks}, but a launcher has started {launched} ranks: leave one out"
        )
    options.ranks = options.ranks or 4
    absent = [rank for rank in (machine.slowdown if machine else {}) if rank >= options.ranks]
    if absent:
        raise ValueError(
            f"--slowdown {absent[0]}=...: there are ranks 0 to {options.ranks - 1} only"
        )
    world = LocalWorld(machine) if launched is None or local else MpiWorld()
    console = console_for(quiet=isinstance(world, MpiWorld) and world.rank != 0)
    ranks = launched or options.ranks
    where = (
        f"{ranks} processes of {world.library}"
        if isinstance(world, MpiWorld)
        else f"{ranks} ranks in this process, virtual times"
        + ("" if mpiexec or local else ' (no mpiexec found: "minidist[mpich]")')
    )
    console.print(f"[bold]minidist {__version__}[/bold]  {world.name} world: {where}")
    with Live(console, names, options.steps) as live:
        result, timelines = comparison.compare(
            methods,
            task,
            options.ranks,
            world,
            options.steps,
            options.batch,
            options.dtype,
            options.seed,
            live.update,
            options.mesh,
            algorithms,
        )
    if console.quiet:
        return 0
    report.show(result, console)  # first, because writing files may fail
    cores = result["host"]["cores"]
    if isinstance(world, MpiWorld) and ranks > cores:
        console.print(
            f"{ranks} ranks share {cores} cores, so seconds and idle time are not comparable; "
            "the predictions assume one core for each rank. Bytes, messages and memory are exact."
        )
    try:
        paths = files.save(result, timelines, options.out)
    except OSError as error:
        raise ValueError(f"nothing can be written to {options.out}: {error.strerror}") from error
    for path in paths:
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)
    return 0


def machine_of(name: str | None, slowdown: list[str]) -> Machine | None:
    """The machine of ``--machine`` and ``--slowdown``; None if neither is given."""
    slow = {}
    for text in slowdown:
        rank, _, times = text.partition("=")
        try:
            slow[int(rank)] = float(times)
        except ValueError:
            raise ValueError(f"--slowdown {text}: write RANK=TIMES, such as 3=4") from None
    if name is None and not slow:
        return None
    return replace(profile(name or "laptop"), slowdown=slow)


def algorithms_of(path: str | None) -> list[dict[str, Any]]:
    """The algorithms that "auto" chose, from the compare.json of another run."""
    if path is None:
        return []
    try:
        found = json.loads(Path(path).read_text())
        algorithms: list[dict[str, Any]] = found["algorithms"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--algorithms {path}: no algorithms can be read: {error!r}") from error
    return algorithms
