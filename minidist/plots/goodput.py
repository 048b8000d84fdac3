"""Draw goodput over the interval between checkpoints: measured points beside the formula."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from minidist.checkpoint.goodput import daly_interval, expected_goodput, young_interval
from minidist.colours import series


def draw_goodput(
    axes: Any, measured: Mapping[float, float], delta: float, M: float, R: float = 0.0
) -> None:
    """``measured`` maps seconds between checkpoints to goodput; δ, M and R as in goodput.py."""
    ends = min(measured, default=M / 50), max(measured, default=M)
    tau = np.geomspace(min(*ends, delta) / 1.5, max(ends) * 1.5, 200)
    formula = [100 * expected_goodput(float(t), delta, M, R) for t in tau]
    axes.plot(tau, formula, color=series(0), label="formula (Daly 2006)")
    points = {t: 100 * goodput for t, goodput in measured.items()}
    axes.plot([*points], [*points.values()], "o", color=series(1), label="simulated")
    for name, at, style in (
        ("Young", young_interval(delta, M), "--"),
        ("Daly", daly_interval(delta, M), ":"),
    ):
        axes.axvline(at, color="grey", linestyle=style, label=f"{name}: every {at:,.0f} s")
    axes.set_xscale("log")
    axes.set_xlabel("seconds of work between checkpoints, τ")
    axes.set_ylabel("goodput: % of all time that is kept")
    axes.set_title(f"a checkpoint takes {delta:g} s, a crash comes every {M:,g} s")
    axes.set_ylim(0, 100)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
