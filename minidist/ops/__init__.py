"""Every op: a function of tensors, with the forward and the backward in one place.

There is one file for each family. An op looks like its formula. A user's own op is written in the
same way:

    def cube(x):
        data = x.data
        return Tensor.of(data**3, (x,), lambda grad: (grad * 3 * data**2,))

The operators and NumPy-style methods of ``Tensor`` are these functions, added to it below.
"""

from __future__ import annotations

from minidist.engine.tensor import add_methods
from minidist.ops.activation import (
    erf,
    gelu,
    leaky_relu,
    log_sigmoid,
    relu,
    sigmoid,
    silu,
    softplus,
    tanh,
)
from minidist.ops.attention import attention, self_attention
from minidist.ops.batch_normalization import batch_norm
from minidist.ops.compare import (
    argmax,
    argmin,
    equal,
    greater,
    greater_equal,
    less,
    less_equal,
    not_equal,
)
from minidist.ops.convolution import conv1d, conv2d
from minidist.ops.cross_entropy import cross_entropy
from minidist.ops.dropout import dropout
from minidist.ops.einsum import einsum
from minidist.ops.elementwise import (
    absolute,
    add,
    astype,
    clip,
    cos,
    divide,
    exp,
    log,
    log1p,
    maximum,
    minimum,
    multiply,
    negative,
    sin,
    sqrt,
    subtract,
    where,
)
from minidist.ops.indexing import embedding, getitem
from minidist.ops.losses import (
    binary_cross_entropy,
    huber,
    kl_divergence,
    mean_squared_error,
)
from minidist.ops.matmul import linear, matmul
from minidist.ops.normalization import layer_norm, rms_norm
from minidist.ops.operands import DTypeError, ShapeError
from minidist.ops.pooling import avg_pool2d, max_pool2d
from minidist.ops.power import exponential, power
from minidist.ops.reduction import logsumexp, max, mean, min, norm, std, sum, var
from minidist.ops.rotary import rotary
from minidist.ops.shape import (
    broadcast_to,
    concatenate,
    copy,
    expand_dims,
    flatten,
    pad,
    reshape,
    split,
    squeeze,
    stack,
    swapaxes,
    transpose,
)
from minidist.ops.softmax import log_softmax, softmax

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
    "__rpow__": lambda x, base: power(base, x),
    "__neg__": negative,
    "__pos__": lambda x: x,
    "__abs__": absolute,
    "__matmul__": matmul,
    "__rmatmul__": lambda x, y: matmul(y, x),
    "__getitem__": getitem,
    "__eq__": equal,
    "__ne__": not_equal,
    "__lt__": less,
    "__le__": less_equal,
    "__gt__": greater,
    "__ge__": greater_equal,
    "T": property(transpose),
    "abs": absolute,
    "ravel": flatten,
}
METHODS |= {
    function.__name__: function
    for function in (
        argmax, argmin, astype, clip, copy, cos, exp, expand_dims, flatten, gelu, log, log1p,
        log_softmax, logsumexp, max, mean, min, norm, relu, reshape, sigmoid, silu, sin, softmax,
        split, sqrt, squeeze, std, sum, swapaxes, tanh, transpose, var,
    )
}  # fmt: skip

add_methods(METHODS)

__all__ = [
    "DTypeError",
    "ShapeError",
    "absolute",
    "add",
    "argmax",
    "argmin",
    "astype",
    "attention",
    "avg_pool2d",
    "batch_norm",
    "binary_cross_entropy",
    "broadcast_to",
    "clip",
    "concatenate",
    "conv1d",
    "conv2d",
    "copy",
    "cos",
    "cross_entropy",
    "divide",
    "dropout",
    "einsum",
    "embedding",
    "equal",
    "erf",
    "exp",
    "expand_dims",
    "exponential",
    "flatten",
    "gelu",
    "getitem",
    "greater",
    "greater_equal",
    "huber",
    "kl_divergence",
    "layer_norm",
    "leaky_relu",
    "less",
    "less_equal",
    "linear",
    "log",
    "log1p",
    "log_sigmoid",
    "log_softmax",
    "logsumexp",
    "matmul",
    "max",
    "max_pool2d",
    "maximum",
    "mean",
    "mean_squared_error",
    "min",
    "minimum",
    "multiply",
    "negative",
    "norm",
    "not_equal",
    "pad",
    "power",
    "relu",
    "reshape",
    "rms_norm",
    "rotary",
    "self_attention",
    "sigmoid",
    "silu",
    "sin",
    "softmax",
    "softplus",
    "split",
    "sqrt",
    "squeeze",
    "stack",
    "std",
    "subtract",
    "sum",
    "swapaxes",
    "tanh",
    "transpose",
    "var",
    "where",
]
