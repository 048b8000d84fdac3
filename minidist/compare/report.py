"""The results of ``compare`` as a table in words, and as a JSON file."""

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
    """The comparison as a table: one row for each method, measured and (predicted) values.

    ``headings`` selects columns of ``CELLS``; all of them if empty.
    """
    caption = [
        "largest rank's share; (predicted: by formula, idle and seconds simulated)",
        *notes(report),
    ]
    view = Table(
        title=f"{report['task']} on {report['dataset']}, {report['ranks']} ranks, "
        f"{report['steps']} steps of {report['batch']}, {report['dtype']}, "
        f"{report['library'] or 'local world'}",
        caption="\n".join(caption),
    )
    headings = headings or list(CELLS)
    view.add_column("family")
    view.add_column("method")
    for heading in headings:
        view.add_column(heading, justify="right")
    rows = report["rows"]
    for place, row in enumerate(rows):
        first = place == 0 or rows[place - 1]["method"] != row["method"]
        last = place + 1 == len(rows) or rows[place + 1]["method"] != row["method"]
        family = title(row["method"]) if first else ""
        cells = (CELLS[heading](row) for heading in headings)
        view.add_row(family, variant(row), *cells, end_section=last)
    return view


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
) -> tuple[Path, Path]:
    """Write compare.json and compare.png into ``folder``; returns their paths."""
    from minidist.compare.picture import draw

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text, picture = folder / "compare.json", folder / "compare.png"
    text.write_text(json.dumps(report, indent=1) + "\n")
    draw(report, timelines, picture)
    return text, picture


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
    for word, meaning in explained(report["rows"], list(CELLS)):
        console.print(f"{word:18} {meaning}".rstrip(), highlight=False)
    for key, reason in report.get("not_applicable", {}).items():
        console.print(f"left out: {key}: {reason}", highlight=False, soft_wrap=True)
    for path in paths:
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)
