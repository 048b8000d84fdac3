"""How a report is shown: on a terminal, as JSON, as JUnit's XML, as Gradescope's results."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from minidist.exercises.marker import HONEST, Mark, Report


def plain(text: str) -> str:
    """What an answer says, without control characters.

    They move a terminal's cursor, so marks could be written over; and XML may not have them.
    """
    return re.sub("[^\t\n\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", text)


def explain(mark: Mark) -> str:
    """What a mark was given for, or the first thing that is wrong."""
    if not mark.cases:
        return "not reached"
    if not mark.wrong:
        if mark.name == HONEST:
            return "nothing forbidden was tried"
        return f"holds in {mark.cases} case{'s' * (mark.cases > 1)}"
    where, what = mark.wrong[0]
    more = f" (and {len(mark.wrong) - 1} more)" if len(mark.wrong) > 1 else ""
    return plain(f"{where}: {what}{more}" if where else what)


def show(report: Report, console: Console) -> None:
    """Print a table with a line for each mark."""
    console.print(f"[bold]{report.title}[/bold]: ", end="", highlight=False)
    console.print(str(report.file), markup=False, highlight=False, soft_wrap=True)
    if report.unsolved:
        console.print(
            "This is the stub, or part of it: NotImplementedError was raised. Nothing to mark yet: "
            f"0 of {report.points} points."
        )
        return
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for mark in report.marks:
        fine = bool(mark.cases and not mark.wrong)
        points = f"{mark.reached}/{mark.points}" if mark.points else ("yes" if fine else "no")
        table.add_row(
            mark.name, f"[{'green' if fine else 'red'}]{points}[/]", escape(explain(mark))
        )
    console.print(table)
    if report.skipped:
        console.print(report.skipped, highlight=False)
    if report.printed.strip():
        lines = plain(report.printed.strip()).splitlines()
        console.print("\nprinted by your program, no part of the marks:", style="dim")
        for line in lines[:10]:
            console.print(f"  {line}", style="dim", markup=False, highlight=False)
    console.print(f"\n{report.reached} of {report.points} points")


def to_json(report: Report) -> dict[str, Any]:
    """The report as plain data."""
    return {
        "exercise": report.exercise,
        "file": str(report.file),
        "points": report.points,
        "reached": report.reached,
        "unsolved": report.unsolved,
        "skipped": report.skipped,
        "marks": [
            {
                "name": mark.name,
                "points": mark.points,
                "reached": mark.reached,
                "passed": bool(mark.cases and not mark.wrong),
                "why": explain(mark),
            }
            for mark in report.marks
        ],
    }


def junit(report: Report) -> str:
    """The report in the XML that continuous integration shows: a test for each mark."""
    failed = [mark for mark in report.marks if mark.wrong or not mark.cases]
    suite = ElementTree.Element(
        "testsuite",
        name=report.exercise,
        tests=str(len(report.marks)),
        failures=str(len(failed)),
    )
    for mark in report.marks:
        test = ElementTree.SubElement(suite, "testcase", classname=report.exercise, name=mark.name)
        if mark in failed:
            ElementTree.SubElement(test, "failure", message=explain(mark))
    return ElementTree.tostring(suite, encoding="unicode")


def gradescope(report: Report) -> dict[str, Any]:
    """What Gradescope's autograder reads from ``/autograder/results/results.json``."""
    said = ["This is the stub, or part of it: nothing to mark yet."] * report.unsolved
    said += [report.skipped] * bool(report.skipped)
    if printed := report.printed.strip():
        said.append(f"printed by your program, no part of the marks:\n{plain(printed[:2000])}")
    return {
        "score": report.reached,
        "output": "\n\n".join(said),
        "tests": [
            {
                "name": mark.name,
                "score": mark.reached,
                "max_score": mark.points,
                # Said, since of a mark without points Gradescope would say that it is passed.
                "status": "passed" if mark.cases and not mark.wrong else "failed",
                "output": explain(mark),
            }
            for mark in report.marks
        ],
    }


def write(path: str | Path, text: str | dict[str, Any]) -> None:
    """Write a report to a file; its folder is made. Raises ValueError if that cannot be."""
    path = Path(path)
    said = text if isinstance(text, str) else json.dumps(text, indent=2) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(said, "utf-8")
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}") from error
