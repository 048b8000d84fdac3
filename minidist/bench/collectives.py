"""``minidist bench collectives``: every algorithm at every size, in the manner of nccl-tests.

For each collective, size and algorithm, the result is checked first, with different data on every
rank. Then one call is timed, on the same arrays for all algorithms and on data just written, in
many short turns; the smallest time counts (see turns.py). The place of arrays in memory can change
the speed of a whole process, so there are several launches, and their median is reported (Hunold,
Carpen-Amarie, "Reproducible MPI benchmarking is still not as easy as you think", IEEE TPDS 27(12)
2016).

    algorithm bandwidth   n / time             for the user
    bus bandwidth         that times a factor  on the links, see kinds.py

The limit of this machine is measured in the same run (point_to_point.py). The MPI library's own
collectives are timed too, and gloo's all-reduce if there is a Python with torch (in one launch,
with up to 3 s for each size). The cost of tracing while it is off is also measured (tracing.py).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from minidist.bench import collectives_report as report_of
from minidist.bench import tracing
from minidist.bench.collectives_measured import bench
from minidist.bench.kinds import KINDS
from minidist.bench.peers import has_torch, torch_ranks
from minidist.comm.launcher import launched_size
from minidist.comm.mpi.world import MpiWorld
from minidist.comm.tuning import save_table
from minidist.run.launcher import find_launcher
from minidist.run.supervisor import start


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="minidist bench collectives",
        description="Measure collectives on MPI ranks at every size, and compare with "
        "the library's and with single messages. Writes collectives.json and collectives.png.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--ranks", type=int, default=2, help="MPI processes to start")
    parser.add_argument(
        "--collective", default="all_reduce", help=f"all, or one or more of {', '.join(KINDS)}"
    )
    parser.add_argument("--algorithms", default="all", help="comma-separated names")
    parser.add_argument("--largest", type=int, default=1 << 26, help="bytes of the largest array")
    parser.add_argument("--dtype", default="float32", help="of the arrays")
    parser.add_argument("--turns", type=int, default=100, help="measurements; the fastest counts")
    parser.add_argument(
        "--launches", type=int, default=3, help="how often all ranks are started; the median counts"
    )
    parser.add_argument("--torch", default=sys.executable, help="a Python that has torch, for gloo")
    parser.add_argument("--json", metavar="PATH", help="also write the report there")
    parser.add_argument(
        "--tune", action="store_true", help='store the fastest, for algorithm="auto"'
    )
    parser.add_argument("--out", default="out/bench", help="folder to write to")
    parser.add_argument("--gloo", default="{}", help=argparse.SUPPRESS)
    parser.add_argument("--report", help=argparse.SUPPRESS)  # of one launch, for the first process
    options = parser.parse_args(arguments)
    try:
        names = {kind: algorithms(options.algorithms, kind) for kind in kinds(options.collective)}
        if options.tune and "all_reduce" not in names:
            raise ValueError("--tune is for --collective all_reduce")
        if launched_size() is None:
            return _start(options, arguments)
    except ValueError as error:
        parser.error(str(error))
    console = Console(width=150, quiet=MpiWorld().rank != 0)
    report = bench(
        {kind: chosen for kind, chosen in names.items() if chosen},
        sizes(options.largest),
        options.dtype,
        options.turns,
        json.loads(options.gloo),
        lambda what: console.print(f"{what} ...", highlight=False),
    )
    if options.report and not console.quiet:
        Path(options.report).write_text(json.dumps(report))
    elif not console.quiet:
        _leave([report], options, console)
    return 0


def _start(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Start gloo's ranks, if there is torch; then this command on MPI ranks, several times."""
    if options.launches < 1:
        raise ValueError(f"--launches must be at least 1, not {options.launches}")
    find_launcher()  # raises before gloo is measured
    gloo = None
    wants_gloo = "all_reduce" in kinds(options.collective) and options.ranks > 1
    if wants_gloo and has_torch(options.torch):
        wanted = [json.dumps(sizes(options.largest)), options.dtype, str(options.turns)]
        gloo = torch_ranks(options.torch, "minidist.bench.peer_gloo", wanted, options.ranks)
    command = [
        "-m",
        "minidist",
        "bench",
        "collectives",
        *arguments,
        "--gloo",
        json.dumps(gloo or {}),
    ]
    reports = []
    with TemporaryDirectory() as folder:
        for number in range(options.launches):
            print(f"launch {number + 1} of {options.launches}", flush=True)
            path = Path(folder) / "report.json"
            found = [*command, "--report", str(path)]
            status = start(found, options.ranks)
            if status:
                return status
            reports.append(json.loads(path.read_text()))
    _leave(reports, options, Console(width=150))
    return 0


def _leave(reports: list[dict[str, Any]], options: argparse.Namespace, console: Console) -> None:
    """Print, draw and write the results of all launches."""
    report = report_of.median_of(reports)
    for view in report_of.tables(report):
        console.width = max(console.width, 24 + 15 * len(view.columns))
        console.print(view)
    for sentence in (report_of.how_near(report), tracing.sentence(report["tracing"])):
        if sentence:
            console.print(sentence, highlight=False)
    for name, why in report["left_out"].items():
        console.print(f"left out: {name}: {why}", highlight=False)
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    report_of.draw(report, folder / "collectives.png")
    paths = [folder / "collectives.json", *([Path(options.json)] if options.json else [])]
    for path in paths:
        path.write_text(json.dumps(report, indent=1) + "\n")
    paths.append(folder / "collectives.png")
    if options.tune:
        paths.append(tune(reports))
    for path in paths:
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)


def sizes(largest: int, factor: int = 4) -> list[int]:
    """Sizes in bytes: 8, 16, then each ``factor`` times the one before."""
    found = [8, 16]
    while found[-1] * factor <= largest:
        found.append(found[-1] * factor)
    return found


def kinds(selection: str) -> list[str]:
    """The collectives in a comma-separated selection; "all" selects all."""
    names = list(KINDS) if selection == "all" else selection.split(",")
    for name in names:
        if name not in KINDS:
            raise ValueError(f"unknown collective {name!r}: choose among {', '.join(KINDS)}")
    return names


def algorithms(selection: str, kind: str = "all_reduce") -> list[str]:
    """The algorithms in a comma-separated selection; "all" selects all, "auto" included.

    Algorithms that only another collective has are left out.
    """
    known = list(KINDS[kind].run)
    if selection == "all":
        return known
    for name in selection.split(","):
        if not any(name in other.run for other in KINDS.values()):
            raise ValueError(f"unknown algorithm {name!r}: choose among {', '.join(known)}")
    found = [name for name in selection.split(",") if name in known]
    if found and all(name in report_of.NO_RIVALS for name in found):
        raise ValueError(f"nothing to compare {selection} with: add one of {', '.join(known)}")
    return found


def tune(reports: Sequence[dict[str, Any]]) -> Path:
    """Store the best all-reduce for every size, for ``algorithm="auto"``; returns the file.

    The best is the one that, in its worst launch, is nearest to the fastest of that launch. An
    algorithm that is fast in two launches and four times slower in the third is not chosen.
    """
    entries = []
    for rows in zip(*(report_of.rows_of(report, "all_reduce") for report in reports), strict=True):
        entries.append(
            (rows[0]["bytes"], min(report_of.rivals(rows[0]), key=partial(report_of.worst, rows)))
        )
    return save_table(reports[0]["library"], reports[0]["ranks"], entries)
