"""Either all ranks continue, or all raise the same error, so that none waits for a failed rank.

Writing and reading files can fail on a single rank. After each such part the ranks agree: the
lowest rank that failed sends its error to all.
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


def broadcast_text(comm: Comm, text: str, root: int = 0) -> str:
    """The text of rank ``root``, on every rank. Every rank must call it."""
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


def on_all_ranks(comm: Comm, work: Callable[[], T]) -> T:
    """The result of ``work()`` on this rank. Raises CheckpointError on all ranks if one fails.

    Every rank must call it; ``work`` must not send messages. Any other error becomes a
    CheckpointError, with the original as its cause.
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
    message = str(error) if mine is not None else f"{type(error).__name__}: {error}"
    received = broadcast_text(comm, f"{kind}{message}", root=rank)
    where = f"rank {rank}: " if comm.size > 1 else ""
    raise KINDS[int(received[0])](where + received[1:]) from error
