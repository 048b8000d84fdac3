"""Data parallelism: every rank holds the whole model and takes a part of each batch.

Read ``data_parallel.py`` first: one all-reduce a step, then one a parameter, then buckets
(``buckets.py``) while the backward runs. ``symmetric.py`` reduces in memory that ranks share.
"""

from __future__ import annotations

from minidist.lazy import offer

__getattr__, __dir__, __all__ = offer(
    __name__,
    {
        "data_parallel": ["DataParallel", "Overlapped", "PerParameter", "shape_of"],
        "buckets": ["Bucket", "backward_left", "cut_buckets"],
        "symmetric": ["SymmetricDataParallel"],
    },
)
