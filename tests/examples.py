"""How many examples a property test draws: a few every day, many in ``make long``."""

from __future__ import annotations

import os

from hypothesis import settings


def examples(count: int) -> settings:
    """``count`` examples, the same ones each time.

    If the environment says ``MINIDIST_EXAMPLES=50``, 50 times as many, and new ones each time.
    """
    times = int(os.environ.get("MINIDIST_EXAMPLES", "1"))
    return settings(max_examples=count * times, deadline=None, derandomize=times == 1)
