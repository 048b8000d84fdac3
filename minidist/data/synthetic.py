"""Synthetic data for regression: two sine waves of eight inputs, and noise.

    y = sin(x W) + noise        x (n, 8) uniform in [-1, 1], W (8, 2) fixed, y (n, 2)

It shows that a method can train on targets that are numbers, several for each sample. The noise has
standard deviation 0.1, so the expected squared error of any model is at least 0.01.
"""

from __future__ import annotations

import numpy as np

from minidist.data.dataset import Dataset
from minidist.engine.seeds import generator


def waves(training: int = 4000, test: int = 1000, seed: int = 0) -> tuple[Dataset, Dataset]:
    """(training, test): inputs (n, 8) and targets (n, 2), floats."""
    random = generator(seed, "waves")
    weight = random.standard_normal((8, 2))
    x = random.uniform(-1, 1, (training + test, 8))
    y = np.sin(x @ weight) + 0.1 * random.standard_normal((len(x), 2))  # (n, 8) @ (8, 2)
    return (
        Dataset("synthetic waves", x[:training], y[:training]),
        Dataset("synthetic waves", x[training:], y[training:]),
    )
