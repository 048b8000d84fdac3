"""Arrays that have shapes and no numbers, in the slot of NumPy and CuPy: device "phantom".

    with defaults(device="phantom"):
        method = DataParallel(gpt(...), CrossEntropy(), Adam(), comm)   # allocates nothing
        method.step(batch)                                              # computes nothing

An op runs as it is written and gets arrays of the right shapes, dtypes and places in memory. A
kernel adds to ``array.work`` the bytes that it moves and, if it multiplies matrices, its FLOPs; the
simulator charges them to a rank's clock. So messages, memory and time of a training step can be
found on machines that nobody has, at sizes that fit no memory. Where the host and a GPU take
different ways, this is a GPU: a chain of steps is one kernel.

``views`` asks NumPy how views lie in memory, ``arrays`` is the array, ``elementwise`` has the
ufuncs and operators, ``functions`` everything else, ``kernels`` what is fused. A program that asks
for a value gets ``NoNumbers``; ``array.read`` is for the places that must ask.
"""

from __future__ import annotations

import types
from typing import Any

from minidist.engine.phantom import elementwise, functions
from minidist.engine.phantom.arrays import NoNumbers, ndarray
from minidist.engine.phantom.kernels import RawKernel, fuse

__all__ = ["NoNumbers", "RawKernel", "fuse", "ndarray"]

has_numbers = False
linalg = types.SimpleNamespace(qr=functions.qr)
lib = types.SimpleNamespace(stride_tricks=types.SimpleNamespace(as_strided=functions.as_strided))
FUNCTIONS = {
    **{
        name: getattr(functions, name)
        for name in (
            *("empty", "zeros", "ones", "full", "empty_like", "zeros_like", "ones_like"),
            *("full_like", "arange", "asarray", "array", "copy", "ascontiguousarray", "asnumpy"),
            *("may_share_memory", "broadcast_to", "expand_dims", "moveaxis", "concatenate"),
            *("stack", "pad", "where", "clip", "triu", "take", "mean", "argmax", "matmul", "dot"),
            *("einsum", "argpartition", "argsort", "packbits", "unpackbits", "scaled_product"),
        )
    },
    "sum": functions.total,
    "max": functions.largest,
    "min": functions.largest,
    "abs": elementwise.function("absolute"),
}
METHODS = ("reshape", "transpose", "swapaxes", "squeeze", "ravel")  # functions too
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
                f'arrays on device "phantom" have no function {name}: see '
                "minidist/engine/phantom/functions.py"
            ) from None
    globals()[name] = value
    return value
