"""The picture of ``minidist bench scaling``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minidist.colours import SERIES, series

COLOURS = {"minidist": series(0), "torch": series(1)}
MACHINE_COLOURS = SERIES[:3]


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw samples a second, hidden communication, and efficiency on many virtual ranks."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = report["real"]
    models = list(dict.fromkeys(row["model"] for row in rows))
    widths = [1.0] * len(models) + ([0.9] if models else []) + [1.4]
    figure = Figure(figsize=(4.4 * sum(widths), 4.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0]
    for axes, model in zip(panels, models, strict=False):
        _rates(axes, [row for row in rows if row["model"] == model], model)
    if models:
        _hidden(panels[-2], [row for row in report["summary"] if "hidden" in row])
    _virtual(panels[-1], report["virtual"])
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _rates(axes: Any, rows: list[dict[str, Any]], model: str) -> None:
    """Draw a bar for each library and rank count: the method with the fastest median step."""
    place, named = 0.0, set[str]()
    for mode in ("strong", "weak"):
        start = place
        for ranks in (1, 2):
            for library, colour in COLOURS.items():
                rates = [
                    row["samples_per_second"]
                    for row in rows
                    if (row["library"], row["ranks"]) == (library, ranks) and mode in row["what"]
                ]
                if rates:
                    label = None if library in named else library
                    axes.bar(place, max(rates), 0.9, color=colour, label=label)
                    axes.text(place, max(rates), f"{max(rates):,.0f}", ha="center", fontsize=6.5)
                    named.add(library)
                    place += 1
            place += 0.4
        axes.text((start + place - 1.4) / 2, 0, f"\n{mode}: 1, 2 ranks", ha="center", va="top")
        place += 0.5
    axes.set_title(f"{model}: samples a second", loc="left")
    axes.set_xticks([])
    axes.margins(y=0.3)  # above the bars, for the legend
    axes.legend(frameon=False, loc="upper left", fontsize=8, ncols=2)


def _hidden(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Draw the hidden communication of each model: in memory, on a link, by the formula."""
    for place, row in enumerate(rows):
        axes.bar(place - 0.2, row["hidden"], 0.38, color=series(2), label="shared memory")
        axes.bar(place + 0.2, row["hidden_on_link"], 0.38, color=series(3), label="1 Gbit/s link")
        formula = row["hidden_by_formula"]
        axes.hlines(formula, place, place + 0.4, "black", linewidth=2, label="formula")
        if place == 0:
            axes.legend(frameon=False, fontsize=8, loc="upper left")
    axes.axhline(0, color="gray", linewidth=0.8)
    axes.set_ylim(-1, 1)  # more is noise: communication in memory is 1 to 4 % of a step
    axes.set_xticks(range(len(rows)), [row["model"] for row in rows])
    axes.set_title("communication hidden", loc="left")


def _virtual(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Draw the weak scaling efficiency of every machine: dots measured, lines by the formula."""
    machines = dict.fromkeys(row["machine"] for row in rows)
    for name, colour in zip(machines, MACHINE_COLOURS, strict=False):
        mine = [row for row in rows if row["machine"] == name]
        one, ranks = mine[0]["predicted_seconds"], [row["ranks"] for row in mine]
        axes.plot(ranks, [one / r["predicted_seconds"] for r in mine], color=colour, label=name)
        axes.plot(ranks, [one / r["seconds"] for r in mine], "o", color=colour, markersize=5)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ranks, [str(count) for count in ranks])
    axes.set_ylim(0, 1.05)
    axes.set_xlabel("ranks")
    axes.set_title("mlp, weak scaling efficiency: dots measured, lines formula", loc="left")
    axes.legend(frameon=False)
