"""Agreement: what all ranks must have alike, and no message would show.

Ranks that train on different batches, or from different seeds, exchange gradients of the right
lengths: nothing fails, and the result is wrong. ``comm.agree(what, digest)`` compares 64 bits of
each rank. It is not counted as messages. How the two worlds do it:

    local   the first rank writes its digest down, and each of the others compares: nobody waits,
            and no virtual time passes. The first rank that differs raises, which ends the run
    MPI     one all-gather of 8 bytes a rank by the library; if any differ, another of the texts,
            so that every rank raises the same error
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from minidist.comm.errors import Disagreement

TEXT = 512  # bytes of each rank's text in an error

Claim = tuple[int, str]  # a rank's digest, and what it stands for


def debugging() -> bool:
    """Whether ``MINIDIST_DEBUG=1``: also checks that take time, as often as they can be made."""
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
    parts += [f"{named(missing)} did not come yet"] if missing else []
    raise Disagreement("ranks do not agree: " + "; ".join(parts))


def named(ranks: list[int]) -> str:
    """ "rank 1", "ranks 0, 2", and no more than ten numbers."""
    shown = ", ".join(map(str, ranks[:10])) + (", ..." if len(ranks) > 10 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"


def packed(text: str) -> np.ndarray:
    """A text as ``TEXT`` bytes."""
    return np.frombuffer(text.encode()[:TEXT].ljust(TEXT, b"\0"), np.uint8).copy()


def unpacked(row: np.ndarray) -> str:
    """The text that ``packed`` made these bytes of."""
    return row.tobytes().rstrip(b"\0").decode(errors="ignore")
