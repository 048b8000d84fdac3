"""The panels of the picture of ``compare``: losses, and for each row gap, bytes, memory and time.

Each function draws into matplotlib axes. ``picture.py`` places these axes on the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from minidist import colours
from minidist.comm.drawing import COLOURS, colour, unit_of
from minidist.comm.trace import Event, span
from minidist.compare.report import total_bytes
from minidist.compare.words import label

LINE = 0.075  # inches: the height of one rank's line
LOSSES = 2.25  # inches: the least height of the panel of losses
TEXT = 0.15  # inches: from one name beside the losses to the next
LONGEST = 3.0  # times the median step; a longer step is cut off, and an arrow shows it
GREY = "#5f6b76"


def _head(axes: Any, text: str, lines: int = 0) -> None:
    """A column's heading, above ``lines`` lines of legend."""
    axes.annotate(
        text,
        (0, 1),
        (0, 4 + 11 * lines),
        "axes fraction",
        "offset points",
        fontsize=8.5,
        fontweight="bold",
        va="bottom",
    )


def _legend(axes: Any, entries: dict[str, str], columns: int) -> None:
    from matplotlib.patches import Patch

    axes.legend(
        handles=[Patch(color=face, label=name) for name, face in entries.items()],
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=columns,
        frameon=False,
        fontsize=7.5,
        borderpad=0,
        borderaxespad=0.2,
        handlelength=0.9,
        handleheight=0.8,
        handletextpad=0.4,
        columnspacing=0.8,
        labelspacing=0.25,
    )


def losses_height(rows: list[dict[str, Any]]) -> float:
    """Inches: as high as the names beside the losses need, one for each row that is not exact."""
    return max(LOSSES, TEXT * (2 + sum(not row["exact"] for row in rows)))


def spread(wanted: Sequence[float], apart: float, low: float, high: float) -> list[float]:
    """Places close to ``wanted`` (ascending), at least ``apart``, from ``low`` to ``high``.

    One pass moves them up, away from the place below; a second moves them down again, below
    ``high``. There must be room: ``apart * (len(wanted) - 1) <= high - low``.
    """
    places = list(wanted)
    for i, place in enumerate(places):
        places[i] = max(place, places[i - 1] + apart if i else low)
    for i in reversed(range(len(places))):
        places[i] = min(places[i], places[i + 1] - apart if i + 1 < len(places) else high)
    return places


def losses(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Exact methods are drawn on one broad line; each other method has a line, with its name.

    If several lines end close together, their names are placed one above the other.
    """
    exact = [row for row in rows if row["exact"]]
    others = [row for row in rows if not row["exact"]]
    steps = range(1, len(exact[0]["loss"]) + 1)
    axes.plot(steps, exact[0]["loss"], color="#c9ced3", linewidth=7, solid_capstyle="round")
    for row in exact[1:]:
        axes.plot(steps, row["loss"], color="black", linewidth=0.9)
    named = f"serial (grey) and {len(exact) - 1} exact methods" if exact[1:] else "serial"
    ends = [(exact[0]["loss"][-1], named, "black")]
    for index, row in enumerate(others):
        dashes = ("-", "--", ":")[index // len(colours.SERIES) % 3]
        axes.plot(steps, row["loss"], dashes, color=colours.series(index), linewidth=1.4)
        ends.append((row["loss"][-1], label(row), colours.series(index)))
    values = [value for row in rows for value in row["loss"] if value == value] or [0.0]  # no NaN
    top = min(max(values), 1.15 * max(row["loss"][0] for row in rows))  # cuts off what diverges
    margin = 0.05 * (top - min(values)) or 0.05
    low, high = min(values) - margin, top + margin
    apart = (high - low) * TEXT / losses_height(rows)  # between names, in units of the loss
    ends = sorted((min(end, high) if end == end else high, *rest) for end, *rest in ends)
    places = spread([end for end, *_ in ends], apart, low, high)
    for (end, text, face), at in zip(ends, places, strict=True):
        axes.annotate(
            text,
            (steps[-1], end),
            (1.025, (at - low) / (high - low)),
            "data",
            "axes fraction",
            color=face,
            fontsize=8,
            va="center",
            arrowprops={
                "arrowstyle": "-",
                "color": face,
                "linewidth": 0.5,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
        )
    axes.set_ylim(low, high)
    axes.set_xlim(1, max(2, steps[-1]))
    axes.xaxis.get_major_locator().set_params(integer=True)  # steps are whole
    axes.set_title("loss, by training step", loc="left", fontsize=9, fontweight="bold")
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def gaps(axes: Any, rows: list[dict[str, Any]], middles: list[float], dtype: str) -> None:
    """The gaps to serial: for exact methods about one rounding, larger for the others."""
    import numpy as np

    epsilon = float(np.finfo(dtype).eps)
    for key, mark, face in (
        ("loss_gap", "o", colours.series(0)),
        ("parameter_gap", "D", colours.series(1)),
    ):
        values = [max(row[key], epsilon / 8) for row in rows]
        axes.plot(values, middles, mark, markersize=3.5, color=face)
    axes.axvline(epsilon, color=colours.OTHER, linewidth=1)
    axes.set_xscale("log")
    axes.minorticks_off()
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, epsilon / 16), max(high, 3.0))
    ticks = [10.0**power for power in range(-18, 2, 3 if epsilon > 1e-10 else 5)]
    axes.set_xticks([tick for tick in ticks if low / 3 < tick < max(high, 3.0)])
    axes.tick_params(axis="x", labelsize=7)
    _head(axes, "gap to serial", 3)
    words = (("loss ●", 0), ("parameters ◆", 1))
    for line, (text, index) in enumerate(words):
        axes.annotate(
            text,
            (0, 1),
            (0, 25 - 11 * line),
            "axes fraction",
            "offset points",
            fontsize=7.5,
            color=colours.series(index),
        )
    axes.annotate(
        "line: one rounding", (0, 1), (0, 3), "axes fraction", "offset points", fontsize=7.5,
        color=GREY,
    )  # fmt: skip


def sent(axes: Any, rows: list[dict[str, Any]], tops: list[float]) -> None:
    """Bytes sent: a bar for each rank, and a mark at the predicted value."""
    largest = max(max(row["bytes_sent"]) for row in rows)
    unit, scale = _unit(largest)
    for top, row in zip(tops, rows, strict=True):
        measured = [value * scale for value in row["bytes_sent"]]
        _bars(axes, top, [measured], ["#b9c0c7"])
        _mark(axes, top, row["predicted_bytes_sent"], scale)
        _number(axes, top, len(measured), max(measured))
    axes.set_xlim(0, 1.5 * largest * scale or 1)
    _head(axes, f"{unit} sent a step", 3)
    axes.annotate(
        "a bar for each rank\nblack: the formula", (0, 1), (0, 3), "axes fraction", "offset points",
        fontsize=7.5, color=GREY,
    )  # fmt: skip


def memory(axes: Any, rows: list[dict[str, Any]], tops: list[float]) -> None:
    """Memory: stacked bars by kind, and a mark at the predicted sum."""
    largest = max(max(total_bytes(row["peak_bytes"])) for row in rows)
    unit, scale = _unit(largest)
    for top, row in zip(tops, rows, strict=True):
        kinds = [[value * scale for value in row["peak_bytes"][kind]] for kind in colours.MEMORY]
        _bars(axes, top, kinds, list(colours.MEMORY.values()))
        predicted = row["predicted_peak_bytes"]
        _mark(axes, top, predicted and total_bytes(predicted), scale)
        _number(axes, top, len(kinds[0]), max(total_bytes(row["peak_bytes"])) * scale)
    axes.set_xlim(0, 1.35 * largest * scale)
    _head(axes, f"{unit} held", 3)
    _legend(axes, colours.MEMORY, 2)


def times(
    axes: Any, rows: list[dict[str, Any]], tops: list[float], timelines: list[list[list[Event]]]
) -> None:
    """The timeline of the last step: broad bars are computing, thin bars communication."""
    lengths = [span(timeline)[1] for timeline in timelines]
    unit, scale = unit_of(max(lengths))
    shown = min(max(lengths), LONGEST * median(lengths)) * scale or 1.0
    for top, row, timeline, length in zip(tops, rows, timelines, lengths, strict=True):
        for rank, events in enumerate(timeline):
            for computing, tall in ((True, 0.9), (False, 0.4)):
                part = [
                    e
                    for e in events
                    if (e.kind in ("compute", "reduce")) == computing and e.start * scale < shown
                ]
                axes.broken_barh(
                    [(e.start * scale, min(e.end * scale, shown) - e.start * scale) for e in part],
                    (top + LINE * (rank + 0.5 - tall / 2), LINE * tall),
                    facecolors=[colour(e) for e in part],
                    edgecolors="none",
                    linewidth=0,
                )
        said = f"{row['step_seconds'] * scale:.3g} {unit}, idle {row['idle_fraction']:.0%}"
        if length * scale > shown:
            axes.annotate(
                f"to {length * scale:.3g} ▸", (shown, top + LINE), fontsize=7, ha="right",
                va="center", backgroundcolor="white",
            )  # fmt: skip
        axes.annotate(
            said,
            (1.5 * shown, top + LINE * len(timeline) / 2),
            fontsize=7.5,
            ha="right",
            va="center",
        )
    axes.set_xlim(0, 1.51 * shown)
    axes.set_xticks([tick for tick in axes.get_xticks() if 0 <= tick <= shown])
    axes.set_xlabel(unit, fontsize=7.5, labelpad=1)
    _head(axes, "the last step; in words, the median of all", 3)
    _legend(axes, COLOURS, 2)


def _bars(axes: Any, top: float, kinds: list[list[float]], faces: list[str]) -> None:
    left = [0.0] * len(kinds[0])
    places = [top + LINE * (rank + 0.5) for rank in range(len(left))]
    for values, face in zip(kinds, faces, strict=True):
        axes.barh(places, values, LINE * 0.85, left=left, color=face)
        left = [low + value for low, value in zip(left, values, strict=True)]


def _number(axes: Any, top: float, ranks: int, value: float) -> None:
    """Write ``value``, the largest of the ranks, to the right of the bars."""
    axes.annotate(
        f"{value:.3g}", (value, top + LINE * ranks / 2), (4, 0), "data", "offset points",
        fontsize=7.5, va="center",
    )  # fmt: skip


def _mark(axes: Any, top: float, predicted: Sequence[float] | None, scale: float) -> None:
    """Mark the predicted value of each bar by a black line."""
    for rank, value in enumerate(predicted or ()):
        axes.vlines(
            value * scale, top + LINE * (rank + 0.05), top + LINE * (rank + 0.95), "black",
            linewidth=1.2,
        )  # fmt: skip


def _unit(largest: float) -> tuple[str, float]:
    """A unit in which ``largest`` bytes are a short number, and the factor from bytes to it."""
    for unit, scale in (("GB", 1e-9), ("MB", 1e-6), ("KB", 1e-3)):
        if largest * scale >= 1:
            return unit, scale
    return "bytes", 1.0
