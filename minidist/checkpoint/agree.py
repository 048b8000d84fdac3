"""All ranks go on, or all raise the same error: nobody waits for one that has given up.

Writing and reading files can fail on one rank alone. After each such part the ranks agree: the
lowest rank that failed tells all others why.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from minidist.checkpoint.manifest import CheckpointError, Damaged, Mismatch
from minidist.collectives import all_reduce, central
from minidist.comm.comm import Comm

T = TypeVar("T")
KINDS: list[type[CheckpointError]] = [CheckpointError, Damaged, Mismatch]


def tell(comm: Comm, text: str, root: int = 0) -> str:
    """The text of one rank, on every rank."""
    if comm.size == 1:
        return text
    raw = np.frombuffer(text.encode(errors="backslashreplace"), np.uint8).copy()
    length = np.array([raw.size], np.int64)
    central.broadcast(comm, length, root=root)
    if length[0]:
        raw = raw if comm.rank == root else np.empty(int(length[0]), np.uint8)
        central.broadcast(comm, raw, root=root)
        return raw.tobytes().decode()
    return ""


def together(comm: Comm, work: Callable[[], T]) -> T:
    """What ``work()`` returns here, if it succeeds on every rank; else CheckpointError on all.

    Every rank must call it, and ``work`` sends no messages. An error that is none of ours becomes
    a CheckpointError, with the first as its cause.
    """
    error: Exception | None = None
    try:
        result = work()
    except Exception as raised:
        error = raised
    first = np.array([comm.rank if error is not None else comm.size], np.int64)
    all_reduce(comm, first, "min")
    rank = int(first[0])
    if rank == comm.size:
        return result
    mine = error if isinstance(error, CheckpointError) else None
    kind = KINDS.index(type(mine)) if mine is not None else 0
    said = str(error) if mine is not None else f"{type(error).__name__}: {error}"
    kind_said = tell(comm, f"{kind}{said}", root=rank)
    where = f"rank {rank}: " if comm.size > 1 else ""
    raise KINDS[int(kind_said[0])](where + kind_said[1:]) from error
