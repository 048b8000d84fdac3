"""What ``compare`` found, for people: a table, a picture and a JSON file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from minidist.comm.timeline import COLOURS, draw_timeline
from minidist.comm.trace import Event

KIND_COLOURS = {
    "parameters": "#2f6690",
    "gradients": "#4c9f70",
    "optimizer": "#b5838d",
    "activations": "#f2a65a",
}
LINES = ("#d9d9d9", "#2f6690", "#c8553d", "#4c9f70", "#8d6a9f", "#b08900")


def label(row: dict[str, Any]) -> str:
    """A method's name in table and picture: "pipeline gpipe"."""
    return f"{row['method']} {row['variant'] or ''}".strip().replace("_", " ")


def held(peak_bytes: dict[str, list[int]]) -> list[int]:
    """All kinds of memory together, by rank."""
    return [sum(kinds) for kinds in zip(*peak_bytes.values(), strict=True)]


def table(report: dict[str, Any]) -> Table:
    """The comparison as a table: a row a method, measured and (predicted) where both are known."""
    view = Table(
        title=f"{report['model']} on {report['dataset']}, {report['ranks']} ranks, "
        f"{report['steps']} steps of {report['batch']}, {report['dtype']}, "
        f"{report['library'] or 'local world'}",
        caption="largest rank's share; (predicted by the method's formula)",
    )
    view.add_column("method")
    for heading in ("loss", "accuracy", "loss gap", "parameter gap"):
        view.add_column(heading, justify="right")
    for heading in ("KB sent a step", "messages", "MB held", "idle", "ms a step"):
        view.add_column(heading, justify="right")
    for row in report["rows"]:
        view.add_row(
            label(row),
            f"{row['loss'][-1]:.4f}",
            f"{row['accuracy']:.1%}",
            f"{row['loss_gap']:.0e}",
            f"{row['parameter_gap']:.0e}",
            _both(row["bytes_sent"], row["predicted_bytes_sent"], 1e-3, "{:,.1f}"),
            _both(row["messages_sent"], row["predicted_messages_sent"], 1, "{:,.0f}"),
            _both(held(row["peak_bytes"]), held(row["predicted_peak_bytes"]), 1e-6, "{:,.2f}"),
            f"{row['idle_fraction']:.0%} ({_percent(row['predicted_idle_fraction'])})",
            f"{row['step_seconds'] * 1e3:.2f}",
        )
    return view


def _both(measured: Sequence[float], predicted: Sequence[float], scale: float, form: str) -> str:
    got, expected = form.format(max(measured) * scale), form.format(max(predicted) * scale)
    return f"{got} ({'=' if measured == predicted else expected})"


def _percent(fraction: float | None) -> str:
    return "unknown" if fraction is None else f"{fraction:.0%}"


def save(
    report: dict[str, Any], timelines: dict[str, list[list[Event]]], folder: str | Path
) -> tuple[Path, Path]:
    """Write compare.json and compare.png into ``folder``; returns their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text, picture = folder / "compare.json", folder / "compare.png"
    text.write_text(json.dumps(report, indent=1) + "\n")
    draw(report, timelines, picture)
    return text, picture


def draw(report: dict[str, Any], timelines: dict[str, list[list[Event]]], path: Path) -> None:
    """The comparison as a picture: losses, bytes, memory, and one step of every method."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = report["rows"]
    heights = [len(events) for events in timelines.values()]
    lower = 0.34 * sum(heights) + 0.6 * len(heights)  # inches for the timelines
    figure = Figure(figsize=(13, 5.0 + lower), dpi=110)
    FigureCanvasAgg(figure)
    parts: Any = figure.subfigures(2, 1, height_ratios=[5.0, lower])
    above, below = parts
    figure.suptitle(
        f"One {report['model']}, trained {len(rows)} ways on {report['ranks']} ranks "
        f"({report['library'] or 'local world, virtual time'})",
        fontsize=14,
    )
    losses, wire, memory = above.subplots(1, 3)
    above.subplots_adjust(left=0.06, right=0.98, top=0.84, bottom=0.15, wspace=0.24)
    _draw_losses(losses, rows)
    _draw_bytes(wire, rows)
    _draw_memory(memory, rows)

    grid = below.subplots(len(rows), 1, squeeze=False, gridspec_kw={"height_ratios": heights})
    below.subplots_adjust(left=0.06, right=0.98, top=0.92, bottom=0.06, hspace=0.75)
    for axes, row, events in zip(grid[:, 0], rows, timelines.values(), strict=True):
        predicted = row["predicted_idle_fraction"]
        idle = f"{row['idle_fraction']:.0%} idle, predicted {_percent(predicted)}"
        draw_timeline(axes, events, f"{label(row)}: one step ({idle})")
        axes.spines[["top", "right"]].set_visible(False)
    handles = [_patch(colour, name) for name, colour in COLOURS.items()]
    below.legend(handles=handles, loc="upper right", ncols=5, frameon=False)
    figure.savefig(path)


def _patch(colour: str, name: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=colour, label=name)


def _draw_losses(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Exact methods lie on one line: each is drawn thinner than the one below it."""
    exact = [row for row in rows if row["exact"]]
    for index, row in enumerate([*exact, *(row for row in rows if not row["exact"])]):
        axes.plot(
            range(1, len(row["loss"]) + 1),
            row["loss"],
            color=LINES[index % len(LINES)],
            linewidth=1.5 + 2.0 * max(0, len(exact) - 1 - index),
            linestyle="-" if row["exact"] else "--",
            label=label(row),
        )
    axes.set_title("loss: exact methods lie on one line", loc="left")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats)")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_bytes(axes: Any, rows: list[dict[str, Any]]) -> None:
    """A bar for each rank of each method, and a mark where the formula puts it."""
    unit, scale = _unit(max(max(row["bytes_sent"]) for row in rows))
    for place, row, ranks in _places(rows):
        measured = [value * scale for value in row["bytes_sent"]]
        axes.bar(place, measured, 0.8 / ranks, color="#8fb3cf", label="measured")
        _mark(axes, place, [value * scale for value in row["predicted_bytes_sent"]], ranks)
    _finish_bars(axes, rows, f"{unit} sent a step, by rank", [_patch("#8fb3cf", "measured")])


def _draw_memory(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Stacked bars by kind, and a mark where the formula puts the sum."""
    unit, scale = _unit(max(max(held(row["peak_bytes"])) for row in rows))
    for place, row, ranks in _places(rows):
        bottom = [0.0] * ranks
        for kind, colour in KIND_COLOURS.items():
            values = [value * scale for value in row["peak_bytes"][kind]]
            axes.bar(place, values, 0.8 / ranks, bottom=bottom, color=colour)
            bottom = [low + value for low, value in zip(bottom, values, strict=True)]
        _mark(axes, place, [v * scale for v in held(row["predicted_peak_bytes"])], ranks)
    handles = [_patch(colour, name) for name, colour in KIND_COLOURS.items()]
    _finish_bars(axes, rows, f"{unit} held at the peak, by rank", handles)


def _mark(axes: Any, place: list[float], values: list[float], ranks: int) -> None:
    """The formula's value: a black line across each bar."""
    half = 0.4 / ranks
    axes.hlines(values, [x - half for x in place], [x + half for x in place], "black", linewidth=2)


def _finish_bars(axes: Any, rows: list[dict[str, Any]], title: str, handles: list[Any]) -> None:
    from matplotlib.lines import Line2D

    axes.set_title(title, loc="left")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.12)
    axes.set_xticks(range(len(rows)), [label(row).replace(" ", "\n") for row in rows], fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    formula = Line2D([], [], color="black", linewidth=2, label="formula")
    axes.legend(handles=[*handles, formula], frameon=False, fontsize=8)


def _places(rows: list[dict[str, Any]]) -> list[tuple[list[float], dict[str, Any], int]]:
    """For each method where the bars of its ranks stand, side by side around its number."""
    places = []
    for index, row in enumerate(rows):
        ranks = len(row["bytes_sent"])
        offsets = [(rank - (ranks - 1) / 2) * 0.84 / ranks for rank in range(ranks)]
        places.append(([index + offset for offset in offsets], row, ranks))
    return places


def _unit(largest: float) -> tuple[str, float]:
    """A unit in which ``largest`` bytes make a short number, and the factor to it."""
    for unit, scale in (("GB", 1e-9), ("MB", 1e-6), ("KB", 1e-3)):
        if largest * scale >= 1:
            return unit, scale
    return "bytes", 1.0


def show(report: dict[str, Any], paths: tuple[Path, ...], console: Console) -> None:
    """Print the table, and where the rest is."""
    console.print(table(report))
    for path in paths:
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)
