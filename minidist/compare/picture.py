"""The results of ``compare`` as a picture, as wide as a page.

At the top are the losses. Below is a row for each method, with a line for each rank: the gap to
serial training, bytes sent, bytes held, and a timeline of the last step. All rows have the same
time axis, so slow methods can be seen.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minidist.comm.trace import Event
from minidist.compare import panels
from minidist.compare.panels import GREY, LINE
from minidist.compare.report import where
from minidist.compare.words import title, variant

WIDTH, DPI = 9.0, 134  # inches, and points for each: 1206 points
BETWEEN, LEAST = 0.13, 0.36  # inches: between rows; the least height of a row
COLUMNS = {"gap": (1.42, 0.95), "bytes": (2.56, 1.2), "memory": (3.88, 1.6), "time": (5.66, 3.2)}
ABOVE, HEADINGS, BELOW = 0.75, 1.07, 0.45  # inches: above the losses; above the rows; below them


def draw(report: dict[str, Any], timelines: dict[str, list[list[Event]]], path: Path) -> None:
    """Draw the comparison into the file ``path``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = report["rows"]
    lines = [max(LEAST, LINE * len(row["bytes_sent"])) for row in rows]
    below = sum(lines) + BETWEEN * len(rows)
    losses = panels.losses_height(rows)
    height = ABOVE + losses + HEADINGS + below + BELOW
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(
        0.1 / WIDTH,
        1 - 0.12 / height,
        f"One {report['task'].replace('_', ' ')}, trained {len(rows)} ways on "
        f"{report['ranks']} ranks",
        fontsize=13,
        va="top",
    )
    figure.text(0.1 / WIDTH, 1 - 0.36 / height, where(report), fontsize=8.5, color=GREY, va="top")

    def axes(left: float, width: float, top: float, tall: float) -> Any:
        return figure.add_axes(
            (left / WIDTH, 1 - (top + tall) / height, width / WIDTH, tall / height)
        )

    panels.losses(axes(0.6, 5.9, ABOVE, losses), rows)
    top = ABOVE + losses + HEADINGS
    columns = {name: axes(left, width, top, below) for name, (left, width) in COLUMNS.items()}
    tops = [sum(lines[:place]) + BETWEEN * place for place in range(len(rows))]
    inner = [  # where the first rank's line begins: the lines are centred in the row
        top_of + (tall - LINE * len(row["bytes_sent"])) / 2
        for top_of, tall, row in zip(tops, lines, rows, strict=True)
    ]
    for panel in columns.values():
        panel.set_ylim(below, -0.02)
        panel.set_yticks([])
        panel.spines[["left", "top", "right"]].set_visible(False)
        panel.tick_params(labelsize=7.5, length=2)
        for place in tops[1:]:
            panel.axhline(place - BETWEEN / 2, color="#e3e6e8", linewidth=0.6, clip_on=False)
    for place, row in enumerate(rows):
        first = place == 0 or rows[place - 1]["method"] != row["method"]
        _name(figure, row, first, 1 - (top + tops[place]) / height, height)
    middles = [top_of + tall / 2 for top_of, tall in zip(tops, lines, strict=True)]
    panels.gaps(columns["gap"], rows, middles, report["dtype"])
    panels.sent(columns["bytes"], rows, inner)
    panels.memory(columns["memory"], rows, inner)
    panels.times(columns["time"], rows, inner, list(timelines.values()))
    figure.savefig(path)


def _name(figure: Any, row: dict[str, Any], first: bool, y: float, height: float) -> None:
    """Write the family's name, if this is its first row, and the row's name below."""
    left, step = 0.1 / WIDTH, 0.145 / height
    if first:
        figure.text(left, y, title(row["method"]), fontsize=8.5, fontweight="bold", va="top")
        y -= step
    figure.text(left, y, variant(row), fontsize=8.5, va="top")
