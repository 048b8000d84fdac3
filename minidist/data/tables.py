"""A user's own samples in a table: CSV and NPZ files as (training, held-out) datasets.

    CSV   one sample on each line, numbers separated by commas, with or without a line of names;
          the last column, or the one named ``target``, is the class: 0, 1, 2, ...
    NPZ   ``numpy.savez(path, inputs=..., targets=...)``: inputs (n, ...), targets (n,)

Inputs are scaled to mean 0 and standard deviation 1 over the training part (in a CSV each column
separately); inputs of dtype uint8 (pixels) are divided by 255.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from minidist.data.batches import Dataset


def csv_file(
    path: str | Path, target: str | None = None, held_out: float = 0.1, seed: int = 0
) -> tuple[Dataset, Dataset]:
    """(training, held-out) of a CSV file: inputs (n, columns - 1), split at random by ``seed``.

    Raises ValueError, with the position, for anything but numbers, classes and equal rows.
    """
    path = Path(path)
    with open(path, encoding="utf-8") as file:
        first = file.readline().rstrip("\r\n").split(",")
    names = None if all(map(_is_number, first)) else [name.strip().strip('"') for name in first]
    if target is not None and (names is None or target not in names):
        raise ValueError(f"{path} has no column {target!r}: its first line is {','.join(first)}")
    try:
        table = np.loadtxt(path, delimiter=",", skiprows=int(names is not None), ndmin=2)
    except ValueError as error:
        raise ValueError(f"{path} is not a table of numbers: {error}") from error
    if table.shape[0] < 2 or table.shape[1] < 2:
        raise ValueError(
            f"{path} has {table.shape} rows and columns: at least 2 of both are needed"
        )
    if not np.isfinite(table).all():
        row, column = np.argwhere(~np.isfinite(table))[0]
        raise ValueError(f"{path}: sample {row}, column {column} is {table[row, column]}")
    at = len(table[0]) - 1 if target is None or names is None else names.index(target)
    return _datasets(path, np.delete(table, at, axis=1), table[:, at], held_out, seed)


def npz_file(path: str | Path, held_out: float = 0.1, seed: int = 0) -> tuple[Dataset, Dataset]:
    """(training, held-out) of an NPZ file with ``inputs`` and ``targets``, split at random.

    Raises ValueError if one is missing, or has Python objects, which are never unpickled.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as stored:
            found = {name: stored[name] for name in ("inputs", "targets") if name in stored}
            names = list(stored)
    except ValueError as error:
        raise ValueError(f"{path} is not an NPZ file of numbers: {error}") from error
    if len(found) < 2:
        raise ValueError(f"{path} has {names}: inputs and targets are needed")
    return _datasets(path, found["inputs"], found["targets"], held_out, seed)


def _datasets(
    path: Path, inputs: np.ndarray, targets: np.ndarray, held_out: float, seed: int
) -> tuple[Dataset, Dataset]:
    if targets.ndim != 1 or targets.dtype.kind not in "fiub" or len(targets) != len(inputs):
        raise ValueError(
            f"{path}: targets are {targets.dtype} of shape {targets.shape} for {len(inputs)} "
            "inputs: one class for each is needed"
        )
    wrong = np.flatnonzero((targets < 0) | (targets != np.floor(targets)))
    if wrong.size:
        raise ValueError(
            f"{path}: the target of sample {wrong[0]} is {targets[wrong[0]]}: classes are 0, 1, ..."
        )
    classes = int(targets.max()) + 1
    whole = Dataset(path.name, inputs, targets.astype(np.int64), classes)
    training, test = whole.split(held_out, seed)
    if inputs.dtype == np.uint8:
        prepare = _pixels
    else:
        axis = 0 if inputs.ndim == 2 else None
        mean, deviation = training.inputs.mean(axis), training.inputs.std(axis)
        scale = np.where(deviation > 0, deviation, 1)
        prepare = lambda raw: (raw - mean) / scale
    return replace(training, prepare=prepare), replace(test, prepare=prepare)


def _pixels(raw: np.ndarray) -> np.ndarray:
    return raw.astype(np.float32) / 255


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
