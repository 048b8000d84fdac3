"""The results of ``compress`` as a table, a picture and a JSON file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from minidist.compress.choosing import GOALS, choose
from minidist.compress.files import save as save_model
from minidist.nn.module import Module
from minidist.plots import save as save_figure

UNITS = {"accuracy": "points", "nats": "nats"}
ALLOWED = {"accuracy": 1.0, "nats": 0.05}  # default limits of the loss of quality


def quality(report: dict[str, Any], value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f} %" if report["quality"] == "accuracy" else f"{value:.3f}"


def table(report: dict[str, Any]) -> Table:
    """One row for each model; in brackets, the original's value divided by the model's."""
    view = Table(
        title=f"{report['task']} on {report['dataset']}, {report['steps']} steps of fine-tuning",
        caption="(×) the original's value divided by this; seconds are measured on this machine",
    )
    view.add_column("model")
    shown = report["quality"] if report["quality"] == "nats" else "accuracy"
    for heading in (
        "KB on disk", "KB in memory", "parameters", "MFLOP a sample", "ms a sample",
        "before tuning", shown, "lost",
    ):  # fmt: skip
        view.add_column(heading, justify="right")
    first = report["rows"][0]
    digits = 2 if report["quality"] == "accuracy" else 4
    for row in report["rows"]:

        def cell(what: str, scale: float, form: str, row: dict[str, Any] = row) -> str:
            return f"{row[what] * scale:{form}} ({first[what] / row[what]:.1f}×)"

        view.add_row(
            row["name"],
            cell("disk", 1e-3, ",.0f"),
            cell("memory", 1e-3, ",.0f"),
            cell("parameters", 1, ",.0f"),
            cell("flops", 1e-6, ",.2f"),
            cell("seconds", 1e3, ".3f"),
            quality(report, row["before"]),
            quality(report, row["after"]),
            f"{row['lost']:.{digits}f}",
        )
    return view


def allowed(report: dict[str, Any], lose: float | None) -> float:
    """The limit of the loss of quality: ``lose``, or its default if None."""
    return ALLOWED[report["quality"]] if lose is None else lose


def advice(report: dict[str, Any], lose: float | None = None) -> list[str]:
    """For each goal, a line with the best model."""
    lose = allowed(report, lose)
    lines = []
    for goal, what in GOALS.items():
        row, first = choose(report, goal, lose), report["rows"][0]
        gain = f"{first[what] / row[what]:.1f} times less" if row is not first else "none is better"
        unit = UNITS[report["quality"]]
        lines.append(f"{goal}, losing at most {lose:g} {unit}: {row['name']} ({gain})")
    return lines


def draw(report: dict[str, Any], path: str | Path) -> Path:
    """Draw quality against bytes on disk and against time; models to the top left are better."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5.4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    rows = report["rows"]
    for axes, what, scale, label in (
        (panels[0], "disk", 1e-3, "KB on disk"),
        (panels[1], "seconds", 1e3, "ms a sample, measured"),
    ):
        for number, row in enumerate(rows):
            colour = f"C{number % 10}" if number else "black"
            x = row[what] * scale
            if row["before"] is not None:
                axes.plot([x, x], [row["before"], row["after"]], color=colour, lw=0.8, alpha=0.6)
                axes.plot(x, row["before"], "o", mfc="white", color=colour, ms=5)
            axes.plot(x, row["after"], "o", color=colour, ms=7, label=row["name"])
        axes.set_xscale("log")
        axes.set_xlabel(label)
        axes.spines[["top", "right"]].set_visible(False)
    # The scale covers the results; qualities before tuning may be far outside.
    results = [row["after"] for row in rows]
    spread = max(max(results) - min(results), 0.01)
    low, high = min(results) - 0.6 * spread, max(results) + 0.25 * spread
    if report["quality"] == "nats":
        low, high = max(results) + 0.6 * spread, min(results) - 0.25 * spread
    panels[0].set_ylim(low, high)
    panels[0].set_ylabel("accuracy (%)" if report["quality"] == "accuracy" else "nats (inverted)")
    figure.suptitle(f"{report['task']}: ● after fine-tuning, ○ before it (if it is on the scale)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)
    return save_figure(figure, path)


def file_of(name: str) -> str:
    """The file name of a model: "int8 per tensor" → "int8_per_tensor.safetensors"."""
    return "_".join(re.findall(r"\w+", name)) + ".safetensors"


def save(report: dict[str, Any], models: Mapping[str, Module], folder: str | Path) -> list[Path]:
    """Write compress.json, compress.png and each model into ``folder``; returns all paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    numbers = folder / "compress.json"
    numbers.write_text(json.dumps(report, indent=1) + "\n")
    paths = [numbers, draw(report, folder / "compress.png")]
    return paths + [save_model(folder / file_of(name), model) for name, model in models.items()]
