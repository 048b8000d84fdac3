"""``minidist exercise list | start NAME`` and ``minidist check NAME FILE``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from shlex import quote

from rich.console import Console
from rich.table import Table

from minidist.exercises.exercise import find
from minidist.exercises.marker import LIMIT, check
from minidist.exercises.names import EXERCISES
from minidist.exercises.report import gradescope, junit, show, to_json, write


def add(commands: argparse._SubParsersAction) -> None:
    """Add both commands to the ``minidist`` command."""
    exercise = commands.add_parser(
        "exercise",
        help="exercises in distributed training, each with a stub to fill in",
        description="Exercises in distributed training. `minidist check` marks the answers.",
    )
    what = exercise.add_subparsers(dest="what", required=True, metavar="WHAT")
    what.add_parser("list", help="all exercises, with their points").set_defaults(run=_list)
    start = what.add_parser(
        "start",
        help="write the stub of an exercise: drawing, formula, task",
        description="Write the stub of an exercise to NAME.py in this folder, or to --to.",
    )
    start.add_argument("name", help="see `minidist exercise list`")
    start.add_argument("--to", help="the file to write (default: NAME.py)")
    start.set_defaults(run=_start)

    marker = commands.add_parser(
        "check",
        help="mark the answer to an exercise",
        description="Run an answer on several numbers of ranks, in processes of its own, and mark "
        "apart: its result, messages, bytes, memory and what else the exercise asks for. The exit "
        "status is 0 for all points, 1 for fewer, 2 if there is nothing to mark.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    marker.add_argument("name", help="the exercise: see `minidist exercise list`")
    marker.add_argument("file", help="the answer, a Python file")
    marker.add_argument(
        "--seed", type=int, default=0, help="draws the data; an instructor's own hides the cases"
    )
    marker.add_argument(
        "--world",
        choices=("both", "local", "mpi"),
        default="both",
        help="local: ranks in one process; mpi: a few cases on real MPI ranks",
    )
    marker.add_argument(
        "--limit",
        type=float,
        default=LIMIT,
        metavar="SECONDS",
        help="an answer that takes longer is stopped; more on a machine that is busy",
    )
    marker.add_argument("--json", metavar="FILE", help="write the marks as JSON, - for the screen")
    marker.add_argument("--junit", metavar="FILE", help="write the marks as JUnit's XML")
    marker.add_argument(
        "--gradescope",
        metavar="FILE",
        help="write them as Gradescope reads them (/autograder/results/results.json)",
    )
    marker.set_defaults(run=_check)


def _list(options: argparse.Namespace, arguments: list[str]) -> int:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("name", "exercise", "minutes", "points"):
        table.add_column(heading, justify="right" if heading in ("minutes", "points") else "left")
    for name in EXERCISES:
        exercise = find(name, EXERCISES)
        points = sum(exercise.marks.values())
        table.add_row(name, exercise.title, str(exercise.minutes), str(points))
    console = Console()
    console.print(table)
    console.print(
        "\nminidist exercise start NAME    writes NAME.py, with the task\n"
        "minidist check NAME NAME.py     marks it",
        highlight=False,
    )
    return 0


def _start(options: argparse.Namespace, arguments: list[str]) -> int:
    exercise = find(options.name, EXERCISES)
    target = Path(options.to or f"{exercise.name}.py")
    if target.exists():
        raise ValueError(f"{target} is there already: nothing was written; choose another by --to")
    target.parent.mkdir(parents=True, exist_ok=True)
    # The last line of the text is the command that marks it: with the name of this file.
    text = exercise.stub.read_text("utf-8").replace("mine.py", quote(target.name))
    target.write_text(text, "utf-8")
    check_it = f"minidist check {exercise.name} {quote(str(target))}"
    print(f"wrote {target}: read its text, fill it in, then: {check_it}")
    return 0


def _check(options: argparse.Namespace, arguments: list[str]) -> int:
    worlds = ("local", "mpi") if options.world == "both" else (options.world,)
    try:
        report = check(options.name, options.file, options.seed, worlds, options.limit)
    except FileNotFoundError as error:
        raise ValueError(error) from None
    if options.json == "-":
        print(json.dumps(to_json(report), indent=2))
    else:
        show(report, Console())
        if options.json:
            write(options.json, to_json(report))
    if options.junit:
        write(options.junit, junit(report))
    if options.gradescope:
        write(options.gradescope, gradescope(report))
    return 2 if report.unsolved else int(not report.passed)
