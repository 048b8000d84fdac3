"""Choose the best compressed model for a goal, with a limit on the loss of quality.

    file      the fewest bytes on disk
    memory    the fewest bytes of parameters and buffers
    speed     the fewest measured seconds, on this machine

Only models that lose at most ``lose`` (points of accuracy, or nats) are considered. If none is
better, the original is chosen. Faster means at least a tenth faster, because repeated measurements
differ by nearly as much.
"""

from __future__ import annotations

from typing import Any

GOALS = {"file": "disk", "memory": "memory", "speed": "seconds"}
MARGIN = {"disk": 1.0, "memory": 1.0, "seconds": 0.9}  # of the original's


def choose(report: dict[str, Any], goal: str, lose: float) -> dict[str, Any]:
    """The row of ``report["rows"]`` to take; the first row is the original.

    Raises ValueError for an unknown goal or a negative ``lose``.
    """
    if goal not in GOALS:
        raise ValueError(f"unknown goal {goal!r}: choose one of {', '.join(GOALS)}")
    if not lose >= 0:
        raise ValueError(f"lose must be at least 0, not {lose}")
    what = GOALS[goal]
    original, *others = report["rows"]
    good = [
        row for row in others if row["lost"] <= lose and row[what] < MARGIN[what] * original[what]
    ]
    return min(good, key=lambda row: row[what], default=original)
