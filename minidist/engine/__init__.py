"""The engine: arrays, and tensors that remember how they were computed.

Read ``mode.py``, ``node.py``, ``tape.py`` and ``tensor.py`` in this order. ``array.py`` finds the
library that owns an array, and ``seeds.py`` makes random numbers. The ops are in ``minidist.ops``.
"""

from __future__ import annotations

from minidist.lazy import offer

__getattr__, __dir__, __all__ = offer(
    __name__,
    {
        "array": ["DeviceError", "defaults", "module_of", "to_device", "to_host", "work"],
        "digests": ["digest"],
        "mode": ["defer_weight_gradients", "enable_grad", "no_grad"],
        "tape": [],
        "tensor": ["Tensor", "as_tensor"],
        "seeds": ["draws", "generator"],
        "gradcheck": [],  # the function in it has the same name
        "recompute": ["checkpoint"],
    },
)
