"""Exercises in distributed training, and a marker that looks at *how* an answer works.

``minidist exercise start ring`` writes a stub; ``minidist check ring mine.py`` marks the answer:
its result, but also the messages, bytes and memory that it took. See ``exercise.py`` for what an
exercise is, ``marker.py`` for how it is marked.
"""

from __future__ import annotations

from minidist.lazy import offer

__getattr__, __dir__, __all__ = offer(
    __name__,
    {
        "exercise": ["Case", "Exercise", "find"],
        "marker": ["Mark", "Report", "check"],
        "names": ["EXERCISES"],
        "report": ["gradescope", "junit", "show", "to_json"],
    },
)
