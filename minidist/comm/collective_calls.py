"""Do all ranks make the same call of a collective?

Ranks that call different collectives, or the same one on arrays of different shapes or dtypes, hang
or get wrong numbers: an MPI library sees bytes, and cannot know. So each call is compared over the
ranks, in the order of calls: operation, algorithm, shape, dtype, reduction, root. If they differ,
every rank raises ``CollectiveMismatch``, which says who called what, and where:

    ranks do not agree: rank 0 has called all_reduce by ring of float32[1000], op='sum', at
    train.py:31 in "main"; rank 1 has called all_reduce by ring of float32[999], op='sum', at ...

The local world always does, without a message. In the MPI world it costs an exchange for each call:
``MINIDIST_DEBUG=1`` in the environment switches it on. How: ``agreement.py``. A root that is no
rank is always refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minidist.comm.errors import CommError


def check_root(rank: int, size: int, operation: str, root: Any) -> None:
    """Raise CommError unless ``root`` is a rank: a negative one would be taken for ``ANY``."""
    if type(root) is int and 0 <= root < size:
        return
    if not isinstance(root, (int, np.integer)) or isinstance(root, bool) or not 0 <= root < size:
        raise CommError(f"rank {rank}: {operation} with root {root!r}: ranks are 0 to {size - 1}")


def describe_collective(operation: str, algorithm: str, arguments: Mapping[str, Any]) -> str:
    """What must be the same on all ranks: "all_reduce by ring of float32[10], op='sum'"."""
    arrays = [describe(value) for value in arguments.values() if not plain(value)]
    others = [f", {name}={value!r}" for name, value in arguments.items() if plain(value)]
    return f"{operation} by {algorithm} of {' and '.join(arrays)}{''.join(others)}"


def plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float))


def describe(value: Any) -> str:
    """An array by dtype and shape; a list of arrays by length: its parts may differ over ranks."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype}[{', '.join(map(str, value.shape))}]"
    return f"{len(value)} arrays" if isinstance(value, Sequence) else type(value).__name__
