"""The results of ``compare`` as a table, a picture and a JSON file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
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


def label(row: dict[str, Any]) -> str:
    """A method's name in the table and the picture: "pipeline gpipe"."""
    return f"{row['method']} {row['variant'] or ''}".strip().replace("_", " ")


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
        title=f"{report['model']} on {report['dataset']}, {report['ranks']} ranks, "
        f"{report['steps']} steps of {report['batch']}, {report['dtype']}, "
        f"{report['library'] or 'local world'}",
        caption="\n".join(caption),
    )
    headings = headings or list(CELLS)
    view.add_column("method")
    for heading in headings:
        view.add_column(heading, justify="right")
    for row in report["rows"]:
        view.add_row(label(row), *(CELLS[heading](row) for heading in headings))
    return view


def notes(report: dict[str, Any]) -> list[str]:
    """Why methods do not equal serial training on this model, each reason once."""
    found: dict[str, list[str]] = {}
    for row in report["rows"]:
        if why := row.get("why_inexact"):
            found.setdefault(why, []).append(label(row))
    return [f"{', '.join(methods)}: not exact, since {why}" for why, methods in found.items()]


def _both(measured: Sequence[float], predicted: Sequence[float], scale: float, form: str) -> str:
    got, expected = form.format(max(measured) * scale), form.format(max(predicted) * scale)
    return f"{got} ({'=' if measured == predicted else expected})"


CELLS: dict[str, Callable[[dict[str, Any]], str]] = {
    "loss": lambda row: f"{row['loss'][-1]:.4f}",
    "accuracy": lambda row: "-" if row["accuracy"] is None else f"{row['accuracy']:.1%}",
    "loss gap": lambda row: f"{row['loss_gap']:.0e}",
    "parameter gap": lambda row: f"{row['parameter_gap']:.0e}",
    "KB sent a step": lambda row: _both(
        row["bytes_sent"], row["predicted_bytes_sent"], 1e-3, "{:,.1f}"
    ),
    "messages": lambda row: _both(
        row["messages_sent"], row["predicted_messages_sent"], 1, "{:,.0f}"
    ),
    "MB held": lambda row: _both(
        total_bytes(row["peak_bytes"]), total_bytes(row["predicted_peak_bytes"]), 1e-6, "{:,.2f}"
    ),
    "idle": lambda row: f"{row['idle_fraction']:.0%} ({row['predicted_idle_fraction']:.0%})",
    "ms a step": lambda row: (
        f"{row['step_seconds'] * 1e3:.2f} ({row['predicted_step_seconds'] * 1e3:.2f})"
    ),
}


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
    """Draw the comparison as a picture.

    Above: the losses, and the gap of each method to serial training. Below: a row for each method,
    with a line for each rank: bytes sent, bytes of memory, and the timeline of one step.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = report["rows"]
    heights = [0.3 + 0.17 * max(2, len(events)) for events in timelines.values()]  # inches
    top = max(3.2, 0.6 + 0.17 * len(rows))
    figure = Figure(figsize=(14, 1.6 + top + sum(heights)), dpi=110)
    FigureCanvasAgg(figure)
    parts: Any = figure.subfigures(2, 1, height_ratios=[0.7 + top, 0.9 + sum(heights)])
    above, below = parts
    figure.suptitle(
        f"One {report['model']}, trained {len(rows)} ways on {report['ranks']} ranks "
        f"({report['library'] or 'local world, virtual time'})",
        fontsize=14,
        y=1 - 0.25 / (1.6 + top + sum(heights)),
    )
    losses, gaps = above.subplots(1, 2, width_ratios=[1.4, 1])
    above.subplots_adjust(
        left=0.06, right=0.98, top=1 - 0.8 / (0.7 + top), bottom=0.5 / (0.7 + top), wspace=0.5
    )
    _draw_losses(losses, rows)
    _draw_gaps(gaps, rows, report["dtype"])

    grid = below.subplots(
        len(rows), 3, squeeze=False, width_ratios=[1, 1, 2.6], height_ratios=heights
    )
    inches = 0.9 + sum(heights)
    below.subplots_adjust(
        left=0.06, right=0.98, top=1 - 0.62 / inches, bottom=0.4 / inches, hspace=0.75, wspace=0.16
    )
    _draw_bytes(grid[:, 0], rows)
    _draw_memory(grid[:, 1], rows)
    for axes, row, events in zip(grid[:, 2], rows, timelines.values(), strict=True):
        draw_timeline(axes, events)
        axes.set_yticks([])
        axes.set_xlabel("")
        milliseconds = f"{row['step_seconds'] * 1e3:.3g} ms a step" if row["step_seconds"] else ""
        axes.set_title(f"{milliseconds}, {_idle(row)}", loc="right", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right", "left"]].set_visible(False)
    below.legend(
        handles=[_patch(colour, name) for name, colour in COLOURS.items()],
        loc="upper right",
        ncols=5,
        frameon=False,
        fontsize=8,
        title="the last step (ms); in words, the median",
    )
    figure.savefig(path)


def _idle(row: dict[str, Any]) -> str:
    predicted = row["predicted_idle_fraction"]
    return f"idle {row['idle_fraction']:.0%} (simulated {predicted:.0%})"


def _patch(colour: str, name: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=colour, label=name)


def _draw_losses(axes: Any, rows: list[dict[str, Any]]) -> None:
    """All exact methods lie on one broad line; each lossy method has its own line."""
    exact = [row for row in rows if row["exact"]]
    lossy = [row for row in rows if not row["exact"]]
    for index, row in enumerate(exact):
        axes.plot(
            range(1, len(row["loss"]) + 1),
            row["loss"],
            color="#2f6690" if index else "#d9d9d9",
            linewidth=1.5 if index else 8,
            label="serial" if not index else f"{len(exact) - 1} exact methods, on the same line",
        )
    for index, row in enumerate(lossy):
        dashes = ("--", ":", "-.")[index // 10 % 3]  # there are ten colours
        axes.plot(
            range(1, len(row["loss"]) + 1), row["loss"], dashes, linewidth=1.1, label=label(row)
        )
    handles, names = axes.get_legend_handles_labels()
    unique = dict(zip(names, handles, strict=True))
    axes.legend(unique.values(), unique.keys(), frameon=False, fontsize=7, ncols=2)
    axes.set_title("loss", loc="left")
    axes.set_xlabel("step")
    axes.set_ylabel("nats")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_gaps(axes: Any, rows: list[dict[str, Any]], dtype: str) -> None:
    """The gap to serial: rounding for exact methods, more for lossy ones."""
    import numpy as np

    others = [row for row in rows if row["method"] != "serial"]
    epsilon = float(np.finfo(dtype).eps)
    for key, mark, name in (("loss_gap", "o", "losses"), ("parameter_gap", "s", "parameters")):
        values = [max(row[key], epsilon / 8) for row in others]
        axes.plot(values, range(len(others)), mark, markersize=4, label=name)
    axes.axvline(epsilon, color="#9aa5b1", linewidth=1)
    axes.text(epsilon, -0.9, f" one rounding of {dtype}", color="#6b7580", fontsize=7, va="center")
    axes.set_xscale("log")
    axes.minorticks_off()
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, epsilon / 16), max(high, epsilon * 30))
    axes.set_yticks(range(len(others)), [label(row) for row in others], fontsize=8)
    axes.set_ylim(len(others) - 0.4, -1.5)
    axes.set_title("largest relative difference to serial", loc="left")
    # In the empty row above the first method, where there are no marks.
    axes.legend(
        frameon=False, fontsize=8, ncols=2, loc="upper right", borderpad=0, borderaxespad=0.1
    )
    axes.spines[["top", "right"]].set_visible(False)


def _draw_bytes(column: Any, rows: list[dict[str, Any]]) -> None:
    """A bar for each rank of each method, and a mark at the predicted value."""
    largest = max(max(row["bytes_sent"]) for row in rows)
    unit, scale = _unit(largest)
    for axes, row in zip(column, rows, strict=True):
        measured = [value * scale for value in row["bytes_sent"]]
        axes.barh(range(len(measured)), measured, 0.8, color="#8fb3cf")
        _mark(axes, row["predicted_bytes_sent"], scale)
        _finish_bars(axes, len(measured), largest * scale)
        axes.set_title(label(row), loc="left", fontsize=9, fontweight="bold")
    column[0].annotate(
        f"{unit} sent a step, by rank (line: formula)",
        (0, 1),
        (0, 22),
        "axes fraction",
        "offset points",
    )


def _draw_memory(column: Any, rows: list[dict[str, Any]]) -> None:
    """Stacked bars by kind, and a mark at the predicted sum."""
    largest = max(max(total_bytes(row["peak_bytes"])) for row in rows)
    unit, scale = _unit(largest)
    for axes, row in zip(column, rows, strict=True):
        left = [0.0] * len(row["bytes_sent"])
        for kind, colour in KIND_COLOURS.items():
            values = [value * scale for value in row["peak_bytes"][kind]]
            axes.barh(range(len(values)), values, 0.8, left=left, color=colour)
            left = [low + value for low, value in zip(left, values, strict=True)]
        _mark(axes, total_bytes(row["predicted_peak_bytes"]), scale)
        _finish_bars(axes, len(left), largest * scale)
        axes.set_yticks([])
    handles = [_patch(colour, name) for name, colour in KIND_COLOURS.items()]
    column[0].legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncols=2,
        frameon=False,
        fontsize=7,
        title=f"{unit} held at the peak",
        title_fontsize=9,
        borderpad=0,
        columnspacing=1,
    )


def _mark(axes: Any, predicted: Sequence[float] | None, scale: float) -> None:
    """Mark the predicted value of each bar by a black line."""
    for rank, value in enumerate(predicted or ()):
        axes.vlines(value * scale, rank - 0.45, rank + 0.45, "black", linewidth=1.5)


def _finish_bars(axes: Any, ranks: int, largest: float) -> None:
    axes.set_xlim(0, 1.03 * largest or 1)
    axes.set_ylim(ranks - 0.4, -0.6)
    axes.set_yticks(range(ranks), [f"rank {rank}" for rank in range(ranks)], fontsize=7)
    axes.tick_params(axis="x", labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def _unit(largest: float) -> tuple[str, float]:
    """A unit in which ``largest`` bytes are a short number, and the factor from bytes to it."""
    for unit, scale in (("GB", 1e-9), ("MB", 1e-6), ("KB", 1e-3)):
        if largest * scale >= 1:
            return unit, scale
    return "bytes", 1.0


def show(report: dict[str, Any], paths: tuple[Path, ...], console: Console) -> None:
    """Print the table, in parts if it is wider than the console, and the paths of the files."""
    endless = console.options.update(max_width=1000)
    part: list[str] = []
    for heading in CELLS:
        wider = table(report, [*part, heading])
        if part and console.measure(wider, options=endless).maximum > console.width:
            console.print(table(report, part))
            part = []
        part.append(heading)
    console.print(table(report, part))
    for key, reason in report.get("not_applicable", {}).items():
        console.print(f"{key}: not applicable here: {reason}", highlight=False, soft_wrap=True)
    for path in paths:
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)
