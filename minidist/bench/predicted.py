"""``minidist bench predicted``: simulated seconds of a step beside those of real MPI ranks.

For one rank, and for two: a machine is calibrated on parts of each model's step
(``calibration.py``) and on messages, and left alone. Then whole steps of each method are measured,
and simulated on that machine. A row has the median of many steps, each on its slowest rank. One
rank never waits, so its steps are measured in processor time, as its parts are: what else runs on
the machine disturbs that little. Of two ranks it is the time on the wall, which means something on
an idle machine only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from minidist import nn
from minidist.bench.calibration import Clock, calibrated, wall_or_processor
from minidist.bench.parts import Job, jobs
from minidist.collectives import all_reduce
from minidist.comm.comm import Comm
from minidist.comm.launcher import first_process, launch
from minidist.comm.machine import Machine
from minidist.data import Batches
from minidist.optim import Adam
from minidist.parallel import DataParallel, Method, Pipeline, Zero1, simulate

MARK = "minidist-predicted:"  # the beginning of the line with the results
MICROBATCHES = 4  # of 1F1B
MARKS = "<!-- minidist bench predicted -->\n", "<!-- end -->\n"  # around the tables in a page
Row = dict[str, Any]


def methods(job: Job, ranks: int) -> dict[str, Callable[[Comm], Method]]:
    """By name, what makes the method. On one rank all are the same."""

    def make(kind: Callable[..., Method], comm: Comm, **options: Any) -> Method:
        return kind(job.model(), nn.CrossEntropy(), Adam(), comm, **options)

    found: dict[str, Callable[[Comm], Method]] = {"data parallel": partial(make, DataParallel)}
    if ranks > 1:
        found["ZeRO-1"] = partial(make, Zero1)
        found["1F1B"] = partial(make, Pipeline, schedule="1f1b", microbatches=MICROBATCHES)
    return found


def rows(comm: Comm, tiny: bool = False, turns: int = 30, steps: int = 60) -> list[Row]:
    """One row for each model and method: every rank gets them, rank 0's have the prediction."""
    clock, found = wall_or_processor(comm), list[Row]()
    for name, job in jobs(tiny).items():
        sizes = [job.batch // comm.size]
        if comm.size > 1:
            sizes.append(job.batch // MICROBATCHES)
        machine = calibrated(comm, job, sizes, turns, clock)
        batches = Batches(job.dataset, job.batch)
        for kind, make in methods(job, comm.size).items():
            seconds = measured(comm, make(comm), batches, steps, clock)
            row = {"model": name, "method": kind, "ranks": comm.size, "seconds": seconds}
            if comm.rank == 0:
                found_seconds = simulate(make, batches, comm.size, machine, steps=2).seconds[-1]
                row |= {"predicted": found_seconds, "machine": said(machine)}
            found.append(row)
    return found


def measured(comm: Comm, method: Method, batches: Batches, steps: int, clock: Clock) -> float:
    """The median seconds of a step, on its slowest rank."""
    times = []
    for number in range(steps + 2):
        comm.barrier()
        start = clock()
        method.step(batches[0])
        slowest = np.array([clock() - start])
        all_reduce(comm, slowest, "max")
        if number > 1:  # the first ones warm up
            times.append(float(slowest[0]))
    return median(times)


def said(machine: Machine) -> dict[str, float]:
    """The numbers that were found."""
    names = ("launch", "memory_bandwidth", "flops", "latency", "bandwidth", "reduce_bandwidth")
    return {name: getattr(machine, name) for name in names}


def error(row: Row) -> float:
    """Of the predicted seconds, as a share of the measured ones."""
    return row["predicted"] / row["seconds"] - 1


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="minidist bench predicted",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--ranks", default="1,2", help="numbers of MPI ranks, 1 or 2")
    parser.add_argument("--tiny", action="store_true", help="small models, few steps: for tests")
    parser.add_argument("--json", type=Path, help="write the rows to this file too")
    parser.add_argument("--page", type=Path, help="put the tables between this page's marks")
    options = parser.parse_args(arguments)
    found = [row for n in options.ranks.split(",") for row in on_ranks(int(n), options.tiny)]
    Console(width=110).print(table(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    if options.page:
        options.page.write_text(inserted(options.page.read_text(), markdown(found), MARKS))
    return 0


def on_ranks(ranks: int, tiny: bool) -> list[Row]:
    """The rows of newly started MPI ranks."""
    command = [sys.executable, "-m", "minidist", "run", "-n", str(ranks), "-m"]
    command += ["minidist.bench.predicted", *(["--tiny"] if tiny else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        if line.startswith(MARK):
            return json.loads(line.removeprefix(MARK))
    raise RuntimeError(f"{ranks} ranks gave no result: status {done.returncode}\n{done.stderr}")


# Tables


def cells(row: Row) -> list[str]:
    return [
        row["model"],
        row["method"],
        str(row["ranks"]),
        f"{1e3 * row['seconds']:.2f}",
        f"{1e3 * row['predicted']:.2f}",
        f"{error(row):+.0%}",
    ]


HEAD = ("model", "method", "ranks", "measured ms", "predicted ms", "error")


def table(found: Sequence[Row]) -> Table:
    off = [abs(error(row)) for row in found]
    made = Table(*HEAD, title=f"median error {median(off):.0%}, largest {max(off):.0%}")
    for row in found:
        made.add_row(*cells(row))
    return made


def markdown(found: Sequence[Row]) -> str:
    """Both tables: steps, and the machines that were calibrated."""
    off = [abs(error(row)) for row in found]
    lines = ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in found]
    lines += ["", f"Median error {median(off):.0%}, largest {max(off):.0%}. The machines:", ""]
    lines += ["| model | ranks | launch | memory | FLOPs | a message | a link | reduction |"]
    lines += ["|---" * 8 + "|"]
    for row in found:
        if row["method"] == "data parallel":
            one, alone = row["machine"], row["ranks"] == 1
            links = f"{1e6 * one['latency']:.1f} µs | {one['bandwidth'] / 1e9:.1f} GB/s"
            lines.append(
                f"| {row['model']} | {row['ranks']} | {1e6 * one['launch']:.1f} µs | "
                f"{one['memory_bandwidth'] / 1e9:.1f} GB/s | {one['flops'] / 1e9:.0f} GFLOP/s | "
                + ("| | |" if alone else f"{links} | {one['reduce_bandwidth'] / 1e9:.1f} GB/s |")
            )
    return "\n".join(lines) + "\n"


def inserted(page: str, text: str, marks: tuple[str, str]) -> str:
    """``page`` with ``text`` between its marks; ValueError if it has none."""
    first, last = marks
    before, begin, rest = page.partition(first)
    _, end, after = rest.partition(last)
    if not (begin and end):
        raise ValueError(f"the page has no lines {first.strip()} and {last.strip()}")
    return f"{before}{begin}\n{text}\n{end}{after}"


if __name__ == "__main__":
    small = "--tiny" in sys.argv[1:]
    sizes = (True, 2, 3) if small else (False, 30, 60)
    result = launch(lambda comm: rows(comm, *sizes), 1)[0]
    if first_process():
        print(MARK + json.dumps(result), flush=True)
