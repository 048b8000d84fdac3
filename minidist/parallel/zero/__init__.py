"""ZeRO: data parallelism whose ranks keep shards in place of replicas.

Read ``stage1.py`` first (the optimizer's state is sharded), then ``stage2.py`` (gradients too) and
``stage3.py`` (parameters too). ``units.py`` cuts a model. ``accumulated.py`` is stage 2, and
``gathered.py`` stage 3, for several microbatches.
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
