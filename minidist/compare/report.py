"""The results of ``compare`` as a table, on the console and in Markdown, with explanations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from minidist.compare.words import explained, label, title, variant


def total_bytes(peak_bytes: dict[str, list[int]]) -> list[int]:
    """The sum of all kinds of memory, by rank."""
    return [sum(kinds) for kinds in zip(*peak_bytes.values(), strict=True)]


def table(report: dict[str, Any], headings: Sequence[str] = ()) -> Table:
    """The comparison as a table: rows are methods, by family; cells are measured (predicted).

    ``headings``: the columns of ``CELLS`` to show; all if empty.
    """
    view = Table()
    headings = headings or list(CELLS)
    view.add_column("method")
    for heading in headings:
        view.add_column(heading, justify="right")
    rows = report["rows"]
    for family in dict.fromkeys(row["method"] for row in rows):
        members = [row for row in rows if row["method"] == family]
        alone = len(members) == 1  # then the family and the row share one line
        if not alone:
            view.add_row(title(family))
        for row in members:
            name = label(row) if alone else f"  {variant(row)}"
            view.add_row(name, *(CELLS[heading](row) for heading in headings))
        view.add_section()
    return view


def subject(report: dict[str, Any]) -> str:
    """One line: the task, data, ranks, steps, dtype and world."""
    return (
        f"{report['task']} on {report['dataset']}, {report['ranks']} ranks, "
        f"{report['steps']} steps of {report['batch']}, {report['dtype']}, "
        f"{where(report)}"
    )


def where(report: dict[str, Any]) -> str:
    """The MPI library; or the machine of the virtual clock, with its slow ranks."""
    if report["library"]:
        return str(report["library"])
    machine = report["machine"]
    slow = [f"rank {rank} {float(times):g} times" for rank, times in machine["slowdown"].items()]
    return f"local world, virtual times of the machine {machine['name']!r}" + (
        f", slower: {', '.join(slow)}" if slow else ""
    )


def notes(report: dict[str, Any]) -> list[str]:
    """The reasons why methods do not equal serial training on this model, each once."""
    found: dict[str, list[str]] = {}
    for row in report["rows"]:
        if why := row.get("why_inexact"):
            found.setdefault(why, []).append(label(row))
    return [f"{', '.join(methods)}: not exact: {why}" for why, methods in found.items()]


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


def _loss(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1e5 else f"{value:.3g}"  # has diverged, perhaps to NaN


CELLS: dict[str, Callable[[dict[str, Any]], str]] = {
    "loss": lambda row: _loss(row["loss"][-1]),
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


def markdown(report: dict[str, Any]) -> str:
    """The table, its explanations, and the computer that was used, as a page in Markdown."""
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
            f"{report['ranks']} ranks shared {host['cores']} cores; the predictions of seconds and "
            "idle time assume one core for each rank."
        )
    return "\n".join([*lines, *notes(report)]) + "\n"


def show(report: dict[str, Any], console: Console) -> None:
    """Print the table (in parts if it is wider than the console), the explanations, and the rows
    that were left out, with the reasons."""
    endless = console.options.update(max_width=1000)
    parts: list[list[str]] = [[]]
    for heading in CELLS:
        wider = table(report, [*parts[-1], heading])
        if parts[-1] and console.measure(wider, options=endless).maximum > console.width:
            parts.append([])
        parts[-1].append(heading)
    console.print(f"[bold]{subject(report)}[/bold]", highlight=False)
    for part in parts:
        console.print(table(report, part))
    for line in notes(report):
        console.print(line, highlight=False)
    words = Table.grid(padding=(0, 2))
    for word, meaning in explained(report["rows"], list(CELLS)):
        words.add_row(word, meaning)
    console.print(words)
    for key, reason in report.get("not_applicable", {}).items():
        console.print(f"left out: {key}: {reason}", highlight=False, soft_wrap=True)
