"""IDX, the format in which MNIST and Fashion-MNIST are distributed.

    bytes 0-1   zero
    byte  2     the type of an element: 8 is uint8
    byte  3     the number of dimensions, d
    then        d lengths of 4 bytes each, then the elements; all numbers are big-endian

(Y. LeCun, "The MNIST database of handwritten digits".)
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def find(folder: str | Path, name: str) -> Path:
    """The path of ``name`` in ``folder``, with or without ``.gz``. Raises FileNotFoundError."""
    folder = Path(folder)
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    what = "has neither" if folder.is_dir() else "is not a folder, so there is neither"
    raise FileNotFoundError(f"{folder} {what} {name} nor {name}.gz")


def read_idx(path: str | Path) -> np.ndarray:
    """The array in an IDX file, gzip-compressed if its name ends in ``.gz``.

    Raises ValueError if it is damaged, or another format.
    """
    path = Path(path)
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in TYPES:
        raise ValueError(f"{path} is not an IDX file: it begins with {raw[:4].hex(' ')}")
    dtype, dimensions = np.dtype(TYPES[raw[2]]), raw[3]
    body = 4 + 4 * dimensions
    shape = tuple(np.frombuffer(raw[4:body], ">u4").tolist())
    expected = body + int(np.prod(shape)) * dtype.itemsize
    if len(raw) != expected:
        raise ValueError(
            f"{path} is damaged: an IDX file of shape {shape} has {expected} bytes, not {len(raw)}"
        )
    return np.frombuffer(raw, dtype, offset=body).reshape(shape).astype(dtype.newbyteorder("="))
