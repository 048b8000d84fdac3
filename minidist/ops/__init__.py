"""Every op: a function of tensors, its forward and its backward side by side.

One family a file. An op reads like its formula, and a user's own op is written the same way:

    def cube(x):
        return Tensor.of(x.data**3, (x,), lambda grad: (grad * 3 * x.data**2,))

The operators and NumPy-style methods of ``Tensor`` are these functions, attached below.
"""

from __future__ import annotations

from minidist.ops.elementwise import (
    add,
    divide,
    exp,
    log,
    multiply,
    negative,
    power,
    relu,
    subtract,
)
from minidist.ops.matmul import linear, matmul
from minidist.ops.neural import cross_entropy
from minidist.ops.reduction import mean, sum
from minidist.ops.shape import reshape, transpose
from minidist.tensor import Tensor

__all__ = [
    "add",
    "cross_entropy",
    "divide",
    "exp",
    "linear",
    "log",
    "matmul",
    "mean",
    "multiply",
    "negative",
    "power",
    "relu",
    "reshape",
    "subtract",
    "sum",
    "transpose",
]

METHODS = {
    "__add__": add,
    "__radd__": lambda x, y: add(y, x),
    "__sub__": subtract,
    "__rsub__": lambda x, y: subtract(y, x),
    "__mul__": multiply,
    "__rmul__": lambda x, y: multiply(y, x),
    "__truediv__": divide,
    "__rtruediv__": lambda x, y: divide(y, x),
    "__pow__": power,
    "__neg__": negative,
    "__matmul__": matmul,
    "__rmatmul__": lambda x, y: matmul(y, x),
    "exp": exp,
    "log": log,
    "relu": relu,
    "sum": sum,
    "mean": mean,
    "reshape": lambda x, *shape: reshape(x, *shape),
    "transpose": lambda x, *axes: transpose(x, *axes),
    "T": property(transpose),
}

for _name, _function in METHODS.items():
    setattr(Tensor, _name, _function)
