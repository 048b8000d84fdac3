"""Plan a pipeline: idle time, memory and picture of every schedule, without running a model.

All stages are equal. By default messages take no time, so differences come only from the schedules.
The unit of time is the forward of a stage. By default each half of the backward (gradient of the
input, gradient of the weights) takes one unit too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from minidist.parallel.pipeline.pricing import Price, price_units
from minidist.parallel.pipeline.schedules import SCHEDULES
from minidist.plots.pipeline import draw_price, legend


@dataclass(frozen=True)
class Plan:
    """The predicted cost of one schedule."""

    name: str
    price: Price
    chunks: int

    @property
    def label(self) -> str:
        """The schedule's name in table and picture: "zero bubble h1"."""
        return "1F1B" if self.name == "1f1b" else self.name.replace("_", " ")

    @property
    def kept(self) -> float:
        """The largest memory for activations of any stage, in microbatches of a whole stage."""
        return max(self.price.peak_saved) / self.chunks


def plan_pipeline(
    stages: int,
    microbatches: int,
    forward: float = 1.0,
    input_gradient: float = 1.0,
    weight_gradient: float = 1.0,
    message: float = 0.0,
) -> list[Plan]:
    """Predict the cost of every schedule for a pipeline of this size. Times: see ``price_units``.

    Raises ValueError for less than one stage or microbatch.
    """
    if stages < 1 or microbatches < 1:
        raise ValueError(
            f"a pipeline needs at least one stage and one microbatch, not {stages} and "
            f"{microbatches}"
        )
    times = forward, input_gradient, weight_gradient, message
    return [
        Plan(name, price_units(schedule, stages, microbatches, *times), schedule.chunks)
        for name, schedule in SCHEDULES.items()
    ]


def table(plans: list[Plan], stages: int, microbatches: int) -> Table:
    """The plans as a table, one row for each schedule."""
    view = Table(
        title=f"{stages} equal stages, {microbatches} microbatches",
        caption="time: 1 is the forward of a stage; kept: microbatches of a stage's activations; "
        "pipedream also steps after every microbatch, with stale weights",
    )
    view.add_column("schedule")
    for heading in ("time of a step", "idle", "kept at most", "kept by stage", "messages"):
        view.add_column(heading, justify="right")
    for plan in plans:
        by_stage = [f"{saved / plan.chunks:g}" for saved in plan.price.peak_saved]
        view.add_row(
            plan.label,
            f"{plan.price.seconds:g}",
            f"{plan.price.idle_fraction:.1%}",
            f"{plan.kept:g}",
            " ".join(by_stage),
            f"{sum(plan.price.messages)}",
        )
    return view


def draw(plans: list[Plan], stages: int, path: str | Path) -> Path:
    """Draw all schedules on one time axis, so that their lengths can be compared."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height = max(0.9, 0.24 * stages) + 0.35
    figure = Figure(figsize=(14, height * len(plans) + 0.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    rows: Any = figure.subplots(len(plans), 1, squeeze=False)[:, 0]
    # Naive is much longer: drawn in full, it would make all others tiny.
    longest = max((p.price.seconds for p in plans if p.name != "naive"), default=1.0)
    for axes, plan in zip(rows, plans, strict=True):
        plural = "" if plan.kept == 1 else "es"
        title = f"{plan.label}: {plan.price.idle_fraction:.1%} idle, "
        title += f"keeps {plan.kept:g} microbatch{plural}"
        if plan.price.seconds > longest:
            title += f"; cut off: takes {plan.price.seconds / longest:.1f} times this width"
        draw_price(axes, plan.price, title)
        axes.set_xlim(0, longest)
    legend(figure, chunks=True)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path
