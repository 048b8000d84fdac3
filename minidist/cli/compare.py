"""``minidist compare``: train one model by every method, and compare."""

from __future__ import annotations

import argparse
import os

from minidist import __version__
from minidist.cli.terminal import Live, console_for, ranks_of, start_mpi
from minidist.comm.launcher import find_mpiexec, launched_size
from minidist.comm.local.world import LocalWorld
from minidist.comm.mpi.world import MpiWorld


def add(commands: argparse._SubParsersAction) -> None:
    from minidist.compare.comparison import ALL_METHODS, TASKS

    compare = commands.add_parser(
        "compare",
        help="train one model by every method, and compare",
        description="Train one model by every method, on the same data from the same seed, and "
        "compare: losses and parameters with serial training; bytes, messages, memory and idle "
        "time with the predictions of each method's formula. Writes compare.json and compare.png.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    compare.add_argument(
        "--methods", default="all", help=f"comma-separated, among: all, {', '.join(ALL_METHODS)}"
    )
    compare.add_argument(
        "--model", default="mlp", choices=sorted(TASKS), help="model to train, with its data"
    )
    compare.add_argument(
        "--ranks", type=int, default=argparse.SUPPRESS, help="how many ranks (default: 4)"
    )
    compare.add_argument(
        "--mesh",
        default="",
        help="add a row for this mesh, such as dp=2,pp=2,tp=2: it has the ranks",
    )
    compare.add_argument(
        "--world",
        choices=("auto", "local", "mpi"),
        default="auto",
        help="local: in this process, on a virtual clock; mpi: one process a rank; "
        "auto: mpi if an mpiexec is found",
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
        "--seed", type=int, default=0, help="seed of the order of the data and all random numbers"
    )
    compare.add_argument("--out", default="out/compare", help="folder to write to")
    compare.set_defaults(run=run)


def run(options: argparse.Namespace, arguments: list[str]) -> int:
    from minidist.compare import comparison, report

    options.ranks = getattr(options, "ranks", None)
    # Raises before anything is launched.
    methods = comparison.names(options.methods, options.model, options.mesh)
    if options.mesh:
        options.ranks = ranks_of(options.mesh, options.ranks, arguments)
    if options.ranks is not None and options.ranks < 1:
        raise ValueError(f"--ranks must be at least 1, not {options.ranks}")
    if not 1 <= options.batch <= 10000:
        raise ValueError(f"--batch must be 1 to 10000, the training images, not {options.batch}")
    launched = launched_size()
    mpiexec = find_mpiexec()
    if launched is None and (options.world == "mpi" or (options.world == "auto" and mpiexec)):
        return start_mpi(options.ranks, arguments)
    if launched is not None and options.ranks not in (None, launched):
        raise ValueError(
            f"--ranks {options.ranks}, but a launcher has started {launched}: leave one of both out"
        )
    options.ranks = options.ranks or 4
    world = LocalWorld() if launched is None or options.world == "local" else MpiWorld()
    console = console_for(quiet=isinstance(world, MpiWorld) and world.rank != 0)
    ranks = launched or options.ranks
    where = (
        f"{ranks} processes of {world.library}"
        if isinstance(world, MpiWorld)
        else f"{ranks} ranks in this process, virtual times"
        + ("" if mpiexec or options.world == "local" else ' (no mpiexec found: "minidist[mpich]")')
    )
    console.print(f"[bold]minidist {__version__}[/bold]  {world.name} world: {where}")
    with Live(console, methods, options.steps) as live:
        result, timelines = comparison.compare(
            methods,
            options.model,
            options.ranks,
            world,
            options.steps,
            options.batch,
            options.dtype,
            options.seed,
            live.update,
            options.mesh,
        )
    if console.quiet:
        return 0
    paths = report.save(result, timelines, options.out)
    report.show(result, paths, console)
    cores = len(os.sched_getaffinity(0))
    if isinstance(world, MpiWorld) and ranks > cores:
        console.print(
            f"{ranks} ranks share {cores} cores, so seconds and idle time are not comparable; "
            "the predictions assume one core for each rank. Bytes, messages and memory are exact."
        )
    return 0
