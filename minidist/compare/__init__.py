"""Compare all methods: each trains the same model on the same data.

``comparison.py`` trains and measures, ``report.py`` prints and draws.
"""

from __future__ import annotations

from minidist.lazy import offer

__getattr__, __dir__, __all__ = offer(
    __name__,
    {
        "comparison": ["KINDS", "TASKS", "Record", "Task", "compare", "names", "relative_gap"],
        "report": [],
    },
)
