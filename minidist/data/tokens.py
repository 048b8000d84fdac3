"""Long sequences of tokens, cut into windows: the input of a language model.

    tokens    T o   b e   o r   n o t
    input     T o   b e            a window of ``length`` tokens
    target      o   b e   o        the same window one token later: the next token at each position

The sequence may be a file larger than memory: ``write_tokens`` writes it once, in pieces, and
``open_tokens`` maps it into memory, so that only the windows that are used are read.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from minidist.data.batches import Dataset


class Windows:
    """Windows of one sequence of tokens, used like the rows of an array (n, length).

    Window i begins at token ``offset + i · stride``. Nothing is copied until ``windows[indices]``.
    """

    dtype = np.dtype(np.int64)  # of ``windows[indices]``, for any stored dtype

    def __init__(self, tokens: np.ndarray, length: int, stride: int, offset: int = 0) -> None:
        # The last token is left out, so that inputs and targets have the same number of windows.
        count = (len(tokens) - 1 - length) // stride + 1
        if length < 1 or stride < 1 or count < 1:
            raise ValueError(
                f"{len(tokens)} tokens are too few for a window of {length} tokens and the one "
                f"after it, with stride {stride}"
            )
        self.tokens = tokens
        self.stride = stride
        self.offset = offset
        self.shape = (count, length)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: Any) -> np.ndarray:
        """The windows at these indices: (n, length), int64."""
        starts = self.offset + np.asarray(indices, np.int64) * self.stride  # (n,)
        if starts.size and not 0 <= np.min(indices) <= np.max(indices) < len(self):
            raise IndexError(f"windows are counted from 0 to {len(self) - 1}")
        places = starts[..., None] + np.arange(self.shape[1])  # (n, length)
        return self.tokens[places].astype(self.dtype)


def token_windows(
    name: str,
    tokens: np.ndarray,
    length: int,
    classes: int | None,
    stride: int | None = None,
    **more: Any,
) -> Dataset:
    """A dataset of (window, the same one token later) pairs: both (n, length).

    ``stride`` is the distance between the starts of windows: by default ``length``, so that each
    token is in one window; 1 gives every possible window. ``more`` is passed to ``Dataset``.
    """
    step = length if stride is None else stride
    inputs, targets = Windows(tokens, length, step), Windows(tokens, length, step, offset=1)
    return Dataset(name, inputs, targets, classes, **more)


def split_tokens(tokens: np.ndarray, held_out: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """(training, held-out): the *end* is held out, so that windows of both do not overlap.

    Raises ValueError if one side would be empty.
    """
    cut = len(tokens) - round(len(tokens) * held_out)
    if not 0 < cut < len(tokens):
        raise ValueError(f"split_tokens: {held_out} of {len(tokens)} tokens leaves one side empty")
    return tokens[:cut], tokens[cut:]


def write_tokens(path: str | Path, pieces: Iterable[np.ndarray], classes: int) -> int:
    """Write a sequence of tokens, piece by piece, to an ``.npy`` file; returns their number.

    Each token takes 1, 2 or 4 bytes, depending on ``classes``. The length is known only at the end,
    so the header is written again then; NumPy's header has room for it. A file that was not
    finished has length 0. Raises ValueError for a token outside [0, classes).
    """
    dtype = np.dtype(np.min_scalar_type(classes - 1))
    count = 0

    def header() -> dict[str, Any]:
        return {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": (count,)}

    with open(path, "wb") as file:
        npy.write_array_header_1_0(file, header())
        for piece in pieces:
            array = np.asarray(piece)
            if array.size and not 0 <= int(array.min()) <= int(array.max()) < classes:
                raise ValueError(
                    f"write_tokens: tokens must lie in [0, {classes}), "
                    f"found {int(array.min())} to {int(array.max())}"
                )
            file.write(array.astype(dtype).tobytes())
            count += array.size
        body = file.tell() - count * dtype.itemsize
        file.seek(0)
        npy.write_array_header_1_0(file, header())
        if file.tell() != body:
            raise RuntimeError(f"write_tokens: NumPy's header changed its length in {path}")
    return count


def open_tokens(path: str | Path) -> np.ndarray:
    """The tokens in a file written by ``write_tokens``, memory-mapped and read-only.

    Raises ValueError for any other file, or one that was not finished.
    """
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:  # EOFError: it is empty, or being written
        raise ValueError(
            f"{path} is not a whole token file: write it with write_tokens(), and let other ranks "
            "wait for that (comm.barrier())"
        ) from error
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu" or not len(tokens):
        raise ValueError(
            f"{path} contains {tokens.dtype} of shape {tokens.shape}, not a 1-D array of tokens: "
            "it is another file, or its writing was not finished"
        )
    return tokens
