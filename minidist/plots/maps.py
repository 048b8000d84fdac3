"""Pictures of what a model looks at: maps over images and tokens, and attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def draw_map(
    axes: Any, values: np.ndarray, image: np.ndarray | None = None, title: str = ""
) -> None:
    """A map (h, w) in red (for) and blue (against), white at 0; ``image`` faintly below it.

    The colours end at the 99th percentile of |values|: one pixel does not make all others white.
    """
    if values.ndim != 2:
        raise ValueError(
            f"draw_map: a map is (height, width), not {values.shape}: take one image's"
        )
    limit = float(np.percentile(np.abs(values), 99)) or float(np.abs(values).max()) or 1.0
    axes.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit)
    if image is not None:
        axes.imshow(image, cmap="Greys", alpha=0.25)
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()


def draw_text_map(axes: Any, values: np.ndarray, text: str, title: str = "") -> None:
    """Characters (or tokens' names) in a row, each on a ground of its value (l,)."""
    if len(values) != len(text):
        raise ValueError(f"draw_text_map: {len(values)} values for {len(text)} characters")
    limit = float(np.abs(values).max()) or 1.0
    axes.imshow(np.asarray(values)[None], cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    for place, character in enumerate(text):
        shown = {"\n": "↵", " ": "␣"}.get(character, character)
        color = "white" if abs(values[place]) > 0.7 * limit else "black"
        axes.text(place, 0, shown, ha="center", va="center", fontsize=9, color=color)
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()


def draw_attention(axes: Any, weights: np.ndarray, text: Sequence[str], title: str = "") -> None:
    """Weights (length, length): a row reads from the columns."""
    axes.imshow(weights, cmap="Greens", vmin=0)
    marks = ["↵" if one == "\n" else "␣" if one == " " else one for one in text]
    axes.set_xticks(range(len(marks)), marks, fontsize=6)
    axes.set_yticks(range(len(marks)), marks, fontsize=6)
    axes.tick_params(length=0)
    axes.set_title(title, fontsize=9)
