"""Digests: 64 bits that stand for any values, the same in every process.

Ranks compare digests if the values themselves are too large to send (``Comm.agree``). Two different
values have the same digest with probability 2⁻⁶⁴. Python's ``hash`` cannot be used: it differs from
process to process.
"""

from __future__ import annotations

import hashlib

import numpy as np

from minidist.engine.array import to_host


def digest(*what: object) -> int:
    """64 bits of these values: arrays by dtype, shape and contents, the rest by its ``repr``.

    >>> digest("seed", 0) == digest("seed", 0) != digest("seed", 1)
    True
    """
    hashed = hashlib.blake2b(digest_size=8)
    for value in what:
        array = to_host(value) if hasattr(value, "dtype") and hasattr(value, "shape") else None
        text = repr(value) if array is None else f"{array.dtype.str}{array.shape}"
        hashed.update(f"{len(text)} {text}".encode())  # the length: ("ab", "c") is not ("a", "bc")
        if array is not None:
            hashed.update(np.ascontiguousarray(array).tobytes())
    return int.from_bytes(hashed.digest(), "little")
