"""Fashion-MNIST: grey images of clothing in ten classes (arXiv 1708.07747).

A class-balanced part ships with the package: 10,000 training and 2,000 test images, so that a
first run needs no network.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import as_file, files

import numpy as np

from minidist.data.batches import Dataset

CLASSES = (
    "T-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


def _pixels(raw: np.ndarray) -> np.ndarray:
    """uint8 to about zero mean and unit deviation (mean 0.286, deviation 0.353 of 0..1)."""
    return (raw.astype(np.float32) / 255 - 0.286) / 0.353


@cache
def fashion_mnist() -> tuple[Dataset, Dataset]:
    """The shipped part as (training, test): inputs (n, 28, 28) float, targets (n,) in 0..9."""
    with as_file(files("minidist.data") / "files" / "fashion_mnist_12k.npz") as path:
        stored = np.load(path, allow_pickle=False)
        parts = {name: stored[name] for name in ("x_train", "y_train", "x_test", "y_test")}

    def dataset(part: str) -> Dataset:
        return Dataset("fashion_mnist", parts[f"x_{part}"], parts[f"y_{part}"], 10, _pixels)

    return dataset("train"), dataset("test")
