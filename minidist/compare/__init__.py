"""Compare all methods: each trains the same model on the same data.

Read ``comparison.py`` first. ``tasks.py`` has the models and data, ``rows.py`` the methods;
``measure.py`` trains and measures; ``report.py`` prints, ``picture.py`` draws, ``files.py`` saves.
"""

from __future__ import annotations

from minidist.lazy import offer

__getattr__, __dir__, __all__ = offer(
    __name__,
    {
        "comparison": ["KINDS", "compare"],
        "files": [],
        "measure": ["Record", "relative_gap"],
        "picture": [],
        "report": [],
        "rows": ["DOZEN", "names"],
        "tasks": ["TASKS", "Task"],
    },
)
