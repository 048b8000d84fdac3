"""Data parallelism: every rank holds the whole model and takes a part of each batch.

Read ``data_parallel.py`` first: the method. Its gradients are summed by a part of it:
``all_reduce.py`` at the end, ``buckets.py`` while the backward runs, ``symmetric.py`` in memory
that ranks share. ``parallel/gradient_sync.py`` lists all such parts.
"""

from __future__ import annotations

from minidist.lazy import offer

__getattr__, __dir__, __all__ = offer(
    __name__,
    {
        "data_parallel": ["DataParallel", "Overlapped", "PerParameter"],
        "all_reduce": ["AllReduce", "AllReducePerParameter"],
        "buckets": ["Bucket", "Buckets", "cut_buckets"],
        "symmetric": ["SymmetricDataParallel", "SymmetricMemory"],
    },
)
