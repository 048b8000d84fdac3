"""Agreement: ranks compare what must be the same on all of them, such as a seed or a batch.

Ranks that train on different batches, or from different seeds, exchange gradients of the right
lengths: nothing fails, and the result is wrong. ``comm.agree(what, digest)`` compares 64 bits of
each rank. It is not counted as messages.

Ranks that call different collectives, or the same one on arrays of different shapes or dtypes, hang
or get wrong numbers: an MPI library sees bytes, and cannot know. So each call of a collective is
compared in the same way, in the order of calls: operation, algorithm, shape, dtype, reduction,
root. The error is a ``CollectiveMismatch``, which says who called what, and where:

    ranks do not agree: rank 0 has called all_reduce by ring of float32[1000], op='sum', at
    train.py:31 in "main"; rank 1 has called all_reduce by ring of float32[999], op='sum', at ...

The local world compares every call. In the MPI world that costs an exchange for each, so it is done
only with ``MINIDIST_DEBUG=1`` in the environment. How the two worlds do it:

    local   the first rank stores its digest, and each of the others compares its own with it: no
            rank waits, and no virtual time passes. The first that differs raises, which ends the
            run
    MPI     one all-gather of 8 bytes a rank by the library; if any differ, another of the texts,
            so that every rank raises the same error
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from minidist.comm.errors import Disagreement

TEXT = 512  # bytes of each rank's text in an error

Claim = tuple[int, str]  # a rank's digest, and what the error says that the rank has


def debugging() -> bool:
    """Whether ``MINIDIST_DEBUG=1`` is set: it turns on the checks that take time."""
    return os.environ.get("MINIDIST_DEBUG", "") not in ("", "0")


def compare(claims: Mapping[int, Claim], size: int) -> None:
    """Raise ``Disagreement`` if the claims, by rank, differ: it names who has what."""
    by_digest: dict[int, list[int]] = {}
    for rank in sorted(claims):
        by_digest.setdefault(claims[rank][0], []).append(rank)
    if len(by_digest) < 2:
        return
    texts = [claims[ranks[0]][1] for ranks in by_digest.values()]
    parts = []
    for (digest, ranks), text in zip(by_digest.items(), texts, strict=True):
        more = f" (digest {digest:016x})" if texts.count(text) > 1 else ""
        parts.append(f"{named(ranks)} {'has' if len(ranks) == 1 else 'have'} {text}{more}")
    missing = [rank for rank in range(size) if rank not in claims]
    parts += [f"{named(missing)} did not call yet"] if missing else []
    raise Disagreement("ranks do not agree: " + "; ".join(parts))


def named(ranks: list[int]) -> str:
    """ "rank 1", "ranks 0, 2", and no more than ten numbers."""
    shown = ", ".join(map(str, ranks[:10])) + (", ..." if len(ranks) > 10 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"


def packed(text: str) -> np.ndarray:
    """A text as ``TEXT`` bytes."""
    return np.frombuffer(text.encode()[:TEXT].ljust(TEXT, b"\0"), np.uint8).copy()


def unpacked(row: np.ndarray) -> str:
    """The text in these bytes, which ``packed`` made."""
    return row.tobytes().rstrip(b"\0").decode(errors="ignore")
