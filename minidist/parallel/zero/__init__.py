"""ZeRO: data parallelism in which no rank keeps what another keeps as well.

Read ``stage1.py`` first (the optimizer's state is cut), then ``stage2.py`` (gradients too) and
``stage3.py`` (parameters too).
"""

from __future__ import annotations

from minidist.lazy import offer

__getattr__, __dir__, __all__ = offer(
    __name__,
    {
        "stage1": ["Zero1", "held_by_rank"],
        "stage2": ["Unit", "Zero2"],
        "stage3": ["Zero3"],
    },
)
