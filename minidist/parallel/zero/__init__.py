"""ZeRO: data parallelism in which no rank keeps what another keeps as well.

Read ``stage1.py`` first (the optimizer's state is cut), then ``stage2.py`` (gradients too) and
``stage3.py`` (parameters too). ``units.py`` says how a model is cut; ``accumulated.py`` is stage 2
for several microbatches, and ``plan.py`` predicts the time of stages 2 and 3.
"""

from __future__ import annotations

from minidist.lazy import offer

__getattr__, __dir__, __all__ = offer(
    __name__,
    {
        "stage1": ["ReduceScatter", "Zero1"],
        "accumulated": ["ReduceScatterUnits"],
        "gathered": ["GatheredUnits"],
        "stage2": ["ReduceScatterSlots", "Zero2"],
        "stage3": ["Zero3"],
        "units": ["Unit"],
    },
)
