"""The one report of a job that failed: which rank was first, why, and what the others did."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minidist.run.lines import Rank


@dataclass
class Failure:
    """What ended a job: ``text`` says why, ``others`` what each other rank did.

    ``lost``: ranks that were killed or cannot be reached; ``machines``: those that cannot.
    """

    rank: Rank | None
    text: str
    status: int
    at: float  # time.time()
    others: dict[int, str] = field(default_factory=dict)
    lost: list[int] = field(default_factory=list)
    machines: list[str] = field(default_factory=list)
    seconds: float = 0.0  # from the start


def report(failure: Failure) -> str:
    """The text to print."""
    who = "" if failure.rank is None else f"rank {failure.rank.number}"
    where = ""
    if failure.rank is not None and failure.rank.machine:
        where = f", process {failure.rank.pid} on {failure.rank.machine}"
    lines = [
        "",
        f"minidist run: the job failed after {failure.seconds:.1f} s"
        + (f", {who} first{where}" if who else ""),
        failure.text.rstrip(),
    ]
    if failure.others:
        lines += ["What the other ranks did:"]
        lines += [f"  rank {rank}: {doing}" for rank, doing in sorted(failure.others.items())]
    return "\n".join(lines)
