"""Gradient compression: data parallelism that sends fewer bytes for a gradient.

Read ``compression.py`` first: the method, and what each compressor sends. ``compressor.py`` has the
interface of a compressor; six are in ``compressors.py``, the seventh in ``power_sgd.py``.
"""

from __future__ import annotations

from minidist.lazy import offer

__getattr__, __dir__, __all__ = offer(
    __name__,
    {
        "compression": ["Compressed", "CompressedSum"],
        "compressor": ["Compressor", "make_compressor"],
        "compressors": ["BFloat16", "Float16", "Quantised", "RandomK", "Sign", "TopK"],
        "power_sgd": ["PowerSGD"],
    },
)
