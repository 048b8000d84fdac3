"""The results of ``compare``: a table with its words, also in Markdown, and a JSON file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from minidist.comm.trace import Event
from minidist.compare.words import explained, label, title, variant


def total_bytes(peak_bytes: dict[str, list[int]]) -> list[int]:
    """The sum of all kinds of memory, by rank."""
    return [sum(kinds) for kinds in zip(*peak_bytes.values(), strict=True)]


def table(report: dict[str, Any], headings: Sequence[str] = ()) -> Table:
    """The comparison as a table: one row for each method, measured and (predicted) values, by
    family.

    ``headings`` selects columns of ``CELLS``; all of them if empty.
    """
    caption = [
        "largest rank's share; (predicted: by formula, idle and seconds simulated)",
        *notes(report),
    ]
    view = Table(
        title=subject(report),
        caption="\n".join(caption),
    )
    headings = headings or list(CELLS)
    view.add_column("method")
    for heading in headings:
        view.add_column(heading, justify="right")
    rows = report["rows"]
    for family in dict.fromkeys(row["method"] for row in rows):
        members = [row for row in rows if row["method"] == family]
        alone = len(members) == 1  # then its name is on one line with the family's
        if not alone:
            view.add_row(title(family))
        for row in members:
            name = label(row) if alone else f"  {variant(row)}"
            view.add_row(name, *(CELLS[heading](row) for heading in headings))
        view.add_section()
    return view


def subject(report: dict[str, Any]) -> str:
    """What was trained, and where."""
    return (
        f"{report['task']} on {report['dataset']}, {report['ranks']} ranks, "
        f"{report['steps']} steps of {report['batch']}, {report['dtype']}, "
        f"{report['library'] or 'local world'}"
    )


def notes(report: dict[str, Any]) -> list[str]:
    """Why methods do not equal serial training on this model, each reason once."""
    found: dict[str, list[str]] = {}
    for row in report["rows"]:
        if why := row.get("why_inexact"):
            found.setdefault(why, []).append(label(row))
    return [f"{', '.join(methods)}: not exact, since {why}" for why, methods in found.items()]


def _both(
    measured: Sequence[float], predicted: Sequence[float] | None, scale: float, form: str
) -> str:
    got = form.format(max(measured) * scale)
    if predicted is None:  # a method of the user's, without a formula
        return got
    return f"{got} ({'=' if measured == predicted else form.format(max(predicted) * scale)})"


def _sent(row: dict[str, Any], what: str, scale: float, form: str) -> str:
    if row.get("uncounted"):
        return "not counted"  # the MPI library's own collectives
    return _both(row[what], row[f"predicted_{what}"], scale, form)


def _one(measured: float, predicted: float | None, form: str) -> str:
    got = form.format(measured)
    return got if predicted is None else f"{got} ({form.format(predicted)})"


def _held(row: dict[str, Any]) -> str:
    predicted = row["predicted_peak_bytes"]
    return _both(
        total_bytes(row["peak_bytes"]),
        None if predicted is None else total_bytes(predicted),
        1e-6,
        "{:,.2f}",
    )


CELLS: dict[str, Callable[[dict[str, Any]], str]] = {
    "loss": lambda row: f"{row['loss'][-1]:.4f}",
    "accuracy": lambda row: "-" if row["accuracy"] is None else f"{row['accuracy']:.1%}",
    "loss gap": lambda row: f"{row['loss_gap']:.0e}",
    "parameter gap": lambda row: f"{row['parameter_gap']:.0e}",
    "KB sent a step": lambda row: _sent(row, "bytes_sent", 1e-3, "{:,.1f}"),
    "messages": lambda row: _sent(row, "messages_sent", 1, "{:,.0f}"),
    "MB held": _held,
    "idle": lambda row: _one(row["idle_fraction"], row["predicted_idle_fraction"], "{:.0%}"),
    "ms a step": lambda row: _one(
        row["step_seconds"] * 1e3,
        row["predicted_step_seconds"] and row["predicted_step_seconds"] * 1e3,
        "{:.2f}",
    ),
}


def try_folder(folder: str | Path) -> None:
    """Before training: raise ValueError, with the reason, unless files can be written there."""
    folder = Path(folder)
    probe = folder / ".minidist-can-write"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise ValueError(f"nothing can be written to {folder}: {error.strerror}") from error


def save(
    report: dict[str, Any], timelines: dict[str, list[list[Event]]], folder: str | Path
) -> tuple[Path, ...]:
    """Write compare.json, compare.md and compare.png into ``folder``; returns their paths."""
    from minidist.compare.picture import draw

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    numbers, text, picture = (folder / f"compare.{kind}" for kind in ("json", "md", "png"))
    numbers.write_text(json.dumps(report, indent=1) + "\n")
    text.write_text(markdown(report))
    draw(report, timelines, picture)
    return numbers, text, picture


def markdown(report: dict[str, Any]) -> str:
    """The table, its words, and on what it was measured, as a page in Markdown."""
    headings = list(CELLS)
    host, versions = report["host"], report["versions"]
    lines = [
        f"# {subject(report)}",
        "",
        "![Loss, bytes, memory and one step of every method](compare.png)",
        "",
        f"| method | {' | '.join(headings)} |",
        f"|---|{'---:|' * len(headings)}",
    ]
    before = ""
    for row in report["rows"]:
        family = "" if row["method"] == before else f"**{title(row['method'])}** "
        cells = " | ".join(CELLS[name](row) for name in headings)
        lines.append(f"| {(family + variant(row)).strip()} | {cells} |")
        before = row["method"]
    lines += ["", "| | |", "|---|---|"]
    for word, meaning in explained(report["rows"], headings):
        lines.append(f"| {'&emsp;' if word[:1] == ' ' else ''}{word.strip()} | {meaning} |")
    lines += ["", *(f"Left out: {key}: {why}." for key, why in report["not_applicable"].items())]
    lines.append(
        f"{host['processor']}, {host['cores']} cores; {report['library'] or 'one process'}; "
        f"Python {versions['python']}, NumPy {versions['numpy']}, minidist {report['minidist']}."
    )
    if report["world"] == "mpi" and report["ranks"] > host["cores"]:
        lines.append(
            f"{report['ranks']} ranks shared {host['cores']} cores, and the predictions of seconds "
            "and idle time assume one for each rank."
        )
    return "\n".join([*lines, *notes(report)]) + "\n"


def show(report: dict[str, Any], paths: tuple[Path, ...], console: Console) -> None:
    """Print the table, in parts if it is wider than the console, what its words mean, which rows
    were left out and why, and the paths of the files."""
    endless = console.options.update(max_width=1000)
    part: list[str] = []
    for heading in CELLS:
        wider = table(report, [*part, heading])
        if part and console.measure(wider, options=endless).maximum > console.width:
            console.print(table(report, part))
            part = []
        part.append(heading)
    console.print(table(report, part))
    words = Table.grid(padding=(0, 2))
    for word, meaning in explained(report["rows"], list(CELLS)):
        words.add_row(word, meaning)
    console.print(words)
    for key, reason in report.get("not_applicable", {}).items():
        console.print(f"left out: {key}: {reason}", highlight=False, soft_wrap=True)
    for path in paths:
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)
