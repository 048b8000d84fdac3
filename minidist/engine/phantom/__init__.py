"""Device "phantom": arrays that have shapes but no numbers, in place of NumPy's or CuPy's arrays.

    with defaults(device="phantom"):
        method = DataParallel(gpt(...), CrossEntropy(), Adam(), comm)   # allocates nothing
        method.step(batch)                                              # computes nothing

Ops run unchanged, on arrays with the right shapes, dtypes and memory addresses. Each kernel adds
the bytes that it moves, and the FLOPs of matrix products, to ``array.work``; the simulator computes
a rank's time from them. So messages, memory and time of a training step can be predicted for
machines that are not available, and for models that fit no machine's memory. Where code differs
between host and GPU, this device runs the GPU's: a chain of elementwise steps is one kernel.

``arrays`` defines the array, and ``views`` computes the layouts of its views. ``creation``,
``elementwise``, ``products`` and ``functions`` have NumPy's functions, and ``kernels`` the fused
ones. Reading a value raises ``NoNumbers`` (``values``); code that must read one calls
``array.read``.
"""

from __future__ import annotations

import types
from typing import Any

from minidist.engine.phantom import creation, elementwise, functions, products
from minidist.engine.phantom.arrays import NoNumbers, ndarray
from minidist.engine.phantom.kernels import RawKernel, fuse

__all__ = ["NoNumbers", "RawKernel", "fuse", "ndarray"]

has_numbers = False
linalg = types.SimpleNamespace(qr=products.qr)
lib = types.SimpleNamespace(stride_tricks=types.SimpleNamespace(as_strided=functions.as_strided))
NAMES = {
    creation: (
        *("empty", "zeros", "ones", "full", "empty_like", "zeros_like", "ones_like", "full_like"),
        *("arange", "asarray", "array", "copy", "ascontiguousarray", "asnumpy"),
    ),
    products: ("matmul", "scaled_product", "dot", "einsum"),
    functions: (
        *("may_share_memory", "broadcast_to", "expand_dims", "moveaxis", "concatenate", "stack"),
        *("pad", "where", "clip", "triu", "take", "mean", "argmax"),
        *("argpartition", "argsort", "packbits", "unpackbits"),
    ),
}
FUNCTIONS = {
    **{name: getattr(module, name) for module, names in NAMES.items() for name in names},
    "sum": functions.total,
    "max": functions.largest,
    "min": functions.largest,
    "abs": elementwise.function("absolute"),
}
METHODS = ("reshape", "transpose", "swapaxes", "squeeze", "ravel")  # also offered as functions
CONSTANTS = ("inf", "nan", "pi", "float16", "float32", "float64", "int8", "int32", "int64", "uint8")


def __getattr__(name: str) -> Any:
    import numpy as np

    if name in FUNCTIONS:
        value = FUNCTIONS[name]
    elif name in CONSTANTS:
        value = getattr(np, name)
    elif name in METHODS:
        value = getattr(ndarray, name)
    else:
        try:
            value = elementwise.function(name)
        except AttributeError:
            raise AttributeError(
                f'arrays on device "phantom" have no function {name}: see minidist/engine/phantom'
            ) from None
    globals()[name] = value
    return value
