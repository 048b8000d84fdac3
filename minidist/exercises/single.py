"""What exercises without ranks share: comparing arrays, and saying how they differ."""

from __future__ import annotations

from typing import Any

import numpy as np

FORBIDDEN = ("minidist",)  # such answers need NumPy alone


def compare(
    what: str, got: Any, expected: np.ndarray, hints: dict[str, Any] | None = None
) -> str | None:
    """None if ``got`` is ``expected`` to 1e-9; else what is wrong.

    ``hints``: explanations, by the value that a known mistake gives.
    """
    try:
        array = np.asarray(got, dtype=float)
    except (TypeError, ValueError):
        return f"{what} is no array of numbers, but {type(got).__name__}"
    if array.shape != expected.shape:
        return f"{what} has the shape {array.shape}, not {expected.shape}"
    if close(array, expected):
        return None
    for hint, value in (hints or {}).items():
        other = np.asarray(value, dtype=float)
        if other.shape == array.shape and close(array, other):
            return hint
    gap = np.abs(array - expected)
    if np.isnan(gap).any():
        return f"{what} has NaN in it"
    size = float((expected * expected).sum())
    times = float((array * expected).sum()) / size if size else 0.0
    if array.size > 1 and times and close(array, times * expected):
        return f"{what} is {unequal(times, 1.0)[0]} times what it should be, in every number"
    worst = np.unravel_index(np.argmax(gap), gap.shape)
    where = f" at {[int(index) for index in worst]}" if gap.ndim else ""
    is_now, should = unequal(array[worst], expected[worst])
    return f"{what} is {is_now}{where}, and should be {should}"


def unequal(got: Any, expected: Any) -> tuple[str, str]:
    """Both numbers, with as many digits as it takes to see that they differ."""
    pairs = ((f"{got:.{digits}g}", f"{expected:.{digits}g}") for digits in (6, 10, 14))
    return next((pair for pair in pairs if pair[0] != pair[1]), (repr(got), repr(expected)))


def close(got: np.ndarray, expected: np.ndarray) -> bool:
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    return bool((np.abs(got - expected) <= 1e-9 * scale).all())


def untouched(given: dict[str, Any], before: dict[str, Any]) -> str | None:
    """Which of the arrays that an answer was given it has changed."""
    changed = [
        name
        for name, array in before.items()
        if array.size and not np.array_equal(given[name], array)
    ]
    return f"{', '.join(changed)} was changed: write into new arrays" if changed else None
