"""Fashion-MNIST: grey images of clothing in ten classes (arXiv 1708.07747).

A class-balanced part ships with the package: 10,000 training and 2,000 test images, so that a
first run needs no network. The full 60,000 and 10,000 are read from a folder with the four files of
https://github.com/zalandoresearch/fashion-mnist, compressed or not.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np

from minidist.data.batches import Dataset
from minidist.data.idx import find, read_idx

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
    """Scale uint8 to [0, 1], then to mean 0 and standard deviation 1 (from 0.286 and 0.353)."""
    return (raw.astype(np.float32) / 255 - 0.286) / 0.353


def fashion_mnist(folder: str | Path | None = None) -> tuple[Dataset, Dataset]:
    """(training, test): inputs (n, 28, 28) float, targets (n,) in 0..9.

    Without ``folder``, the package's part of 10,000 and 2,000 images. With it, the full dataset
    from the IDX files there: ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the same
    two with ``t10k``, each with or without ``.gz``. Raises FileNotFoundError if one is missing,
    ValueError if it is damaged or another dataset.
    """
    if folder is None:
        return _shipped()
    return _from_folder(folder, "train"), _from_folder(folder, "t10k")


@cache
def _shipped() -> tuple[Dataset, Dataset]:
    with as_file(files("minidist.data") / "files" / "fashion_mnist_12k.npz") as path:
        stored = np.load(path, allow_pickle=False)
        parts = {name: stored[name] for name in ("x_train", "y_train", "x_test", "y_test")}

    def dataset(part: str) -> Dataset:
        return Dataset("fashion_mnist", parts[f"x_{part}"], parts[f"y_{part}"], 10, _pixels)

    return dataset("train"), dataset("test")


def _from_folder(folder: str | Path, part: str) -> Dataset:
    images = read_idx(find(folder, f"{part}-images-idx3-ubyte"))
    labels = read_idx(find(folder, f"{part}-labels-idx1-ubyte"))
    if images.ndim != 3 or images.shape[1:] != (28, 28) or images.dtype != np.uint8:
        raise ValueError(
            f"{folder}: the {part} images are {images.dtype} of {images.shape}, not uint8 of "
            "(n, 28, 28): is this Fashion-MNIST?"
        )
    if len(labels) and int(labels.max()) >= len(CLASSES):
        raise ValueError(f"{folder}: the {part} labels go up to {labels.max()}, not 9")
    return Dataset("fashion_mnist", images, labels, len(CLASSES), _pixels)
