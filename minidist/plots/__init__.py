"""Plots of results, drawn on axes that the caller provides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def plot_confusion(axes: Any, confusion: np.ndarray, names: Sequence[str]) -> None:
    """Draw a confusion matrix: each row in percent of its class, the diagonal in another colour.

    Mistakes have their own colour scale: on the scale of a diagonal of 80 to 99 % they would all
    look the same.
    """
    share = 100 * confusion / np.maximum(1, confusion.sum(axis=1, keepdims=True))
    right = np.eye(len(share), dtype=bool)
    axes.imshow(np.where(right, np.nan, share), cmap="Reds", vmin=0)
    axes.imshow(np.where(right, share, np.nan), cmap="Greens", vmin=0, vmax=160)
    worst = share[~right].max(initial=1)
    for (row, column), value in np.ndenumerate(share):
        if value >= 1:
            dark = not right[row, column] and value > 0.6 * worst
            axes.text(
                column,
                row,
                f"{value:.0f}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if dark else "black",
            )
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("guessed")
    axes.set_ylabel("target")
    axes.set_title("Percent of each class guessed as …")


def save(figure: Any, path: str | Path) -> Path:
    """Save a figure as PNG at ``path``, and create its folder; a notebook also shows it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, bbox_inches="tight", facecolor="white")
    return path
