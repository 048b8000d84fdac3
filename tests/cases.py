"""One small example of every op, as ``name: (function of tensors, float64 input arrays)``.

What must hold of *every* op is checked over this table: on the host, on the strict stand-in
device, and on a real GPU.
"""

import numpy as np

from minidist import ops
from minidist.engine import array as arrays
from minidist.engine.seeds import draws, generator
from minidist.engine.tensor import Tensor


def normal(*shape):
    return generator(0, "case", shape).standard_normal(shape)


def positive(*shape):
    return np.abs(normal(*shape)) + 0.5


def on(tensor, array):
    """A constant where the tensor is."""
    return tensor.xp.asarray(array)


def dropped(x):
    with draws(seed=1, step=2):
        return ops.dropout(x, 0.5, "case")


X = normal(2, 3, 4)
TOKENS = np.array([[0, 2, 2], [4, 0, 2]])
IMAGES, KERNELS = normal(2, 4, 5, 6), normal(6, 4, 3, 3)
HALF_KERNELS = normal(6, 2, 3, 3)

ALLOWED = normal(2, 1, 3, 5) > -0.5
ALLOWED[0, 0, 1] = False  # a query that may use no key
BIAS = normal(4, 1, 5)

CASES = {
    "add": (ops.add, X, normal(3, 1)),
    "subtract": (ops.subtract, X, normal(4)),
    "multiply": (ops.multiply, X, normal(3, 1)),
    "divide": (ops.divide, X, positive(2, 1, 4)),
    "numbers": (lambda x: 1.0 - (2 * x + 1) / 3.0 + 2.0 / x - np.float64(3.0) * x, positive(3, 4)),
    "power": (lambda x: x**3 + x**2 + x**0.5, positive(3, 4)),
    "exponential": (lambda x: 2.0**x, X),
    "astype": (lambda x: x.astype("float64").astype(x.dtype), X),
    "negative": (lambda x: -x, X),
    "exp": (ops.exp, X),
    "log": (ops.log, positive(3, 4)),
    "sqrt": (ops.sqrt, positive(3, 4)),
    "absolute": (abs, X),
    "clip": (lambda x: x.clip(-0.5, 0.5), X),
    "where": (lambda x, y: ops.where(x > y, x, y) + ops.where(x > 0, x, 0.0), X, normal(3, 4)),
    "maximum": (ops.maximum, X, normal(3, 4)),
    "minimum": (lambda x: ops.minimum(x, 0.25), X),
    "relu": (ops.relu, X),
    "tanh": (ops.tanh, X),
    "sigmoid": (ops.sigmoid, X),
    "silu": (ops.silu, X),
    "gelu": (ops.gelu, X),
    "gelu exact": (lambda x: ops.gelu(x, exact=True), X),
    "erf": (ops.erf, X),
    "leaky_relu": (ops.leaky_relu, X),
    "softplus": (ops.softplus, X),
    "log_sigmoid": (ops.log_sigmoid, X),
    "log1p": (ops.log1p, positive(3, 4)),
    "sin": (ops.sin, X),
    "cos": (ops.cos, X),
    "power of tensors": (ops.power, positive(2, 3, 1), normal(3, 4)),
    "vectors": (lambda x, y, z: x @ y @ z, normal(3), normal(3, 4), normal(4)),
    "einsum": (lambda x, y: ops.einsum("bij,kj->ibk", x, y), X, normal(5, 4)),
    "einsum of three": (
        lambda *a: ops.einsum("i,ij,jk->", *a),
        normal(2),
        normal(2, 3),
        normal(3, 4),
    ),
    "std": (lambda x: x.std(axis=1, ddof=1), X),
    "norm": (lambda x: x.norm(axis=-1, keepdims=True) + x.norm(), X),
    "matmul": (ops.matmul, X, normal(4, 5)),
    "linear": (ops.linear, X, normal(4, 5), normal(5)),
    "sum": (lambda x: x.sum(axis=(0, 2)) + x.sum(), X),
    "mean": (lambda x: x.mean(axis=1, keepdims=True) + x.mean(), X),
    "var": (lambda x: x.var(axis=-1, ddof=1), X),
    "max": (lambda x: x.max(axis=1), X),
    "min": (lambda x: x.min(axis=(0, 1)), X),
    "logsumexp": (lambda x: x.logsumexp(axis=-1), X),
    "reshape": (lambda x: x.reshape(6, -1), X),
    "copy": (lambda x: ops.copy(x.T), X),
    "flatten": (lambda x: x.flatten(1), X),
    "transpose": (lambda x: x.transpose(2, 0, 1), X),
    "T": (lambda x: x.T, X),
    "swapaxes": (lambda x: x.swapaxes(0, 1), X),
    "squeeze": (lambda x: x.expand_dims(1).squeeze(1), X),
    "broadcast_to": (lambda x: ops.broadcast_to(x, (5, 2, 3, 4)), X),
    "concatenate": (lambda x, y: ops.concatenate([x, y, x], axis=1), X, normal(2, 1, 4)),
    "stack": (lambda x, y: ops.stack([x, y], axis=1), X, normal(2, 3, 4) * 2),
    "split": (lambda x: x.split((1, 2, 1))[1], X),
    "pad": (lambda x: ops.pad(x, [(1, 0), (0, 0), (2, 1)]), X),
    "slice": (lambda x: x[1:, ::-1, ::2], X),
    "gather": (lambda x: x[:, on(x, np.array([0, 2, 2]))], X),
    "mask": (lambda x: x[x > 0], X),
    "embedding": (lambda w: ops.embedding(on(w, TOKENS), w), normal(5, 3)),
    "softmax": (ops.softmax, X),
    "log_softmax": (lambda x: ops.log_softmax(x, axis=1), X),
    "cross_entropy": (
        lambda z: ops.cross_entropy(z, on(z, TOKENS[:, :3]), 7, 2, 0.1),
        normal(2, 3, 5),
    ),
    "cross_entropy of probabilities": (
        lambda z: ops.cross_entropy(z, on(z, X.T[:, :3, :2] ** 2).astype(z.dtype), 7),
        normal(4, 3, 2),
    ),
    "cross_entropy with weights": (
        lambda z: ops.cross_entropy(z, on(z, TOKENS[:, :3]), 7, 2, weight=[1, 2, 3, 4, 5]),
        normal(2, 3, 5),
    ),
    "cross_entropy of each": (
        lambda z: ops.cross_entropy(z, on(z, TOKENS[:, :3]), None, 2, 0.1, reduction="none"),
        normal(2, 3, 5),
    ),
    "huber": (lambda x: ops.huber(x, on(x, X * 0.3).astype(x.dtype), None, 0.5), X),
    "kl_divergence": (
        lambda x: ops.kl_divergence(x, on(x, np.maximum(X, 0)).astype(x.dtype)),
        X,
    ),
    "mean_squared_error": (lambda x: ops.mean_squared_error(x, on(x, X + 1).astype(x.dtype)), X),
    "binary_cross_entropy": (
        lambda x: ops.binary_cross_entropy(x, on(x, (X > 0) * 1.0).astype(x.dtype)),
        X,
    ),
    "layer_norm": (ops.layer_norm, X, normal(4), normal(4)),
    "rms_norm": (ops.rms_norm, X, normal(4)),
    "batch_norm": (lambda *a: ops.batch_norm(*a)[0], X, normal(3), normal(3)),
    "dropout": (dropped, X),
    "attention": (ops.attention, normal(2, 4, 3, 2), normal(2, 2, 5, 2), normal(2, 2, 5, 2) * 2),
    "self_attention": (lambda x: ops.self_attention(x, 4, 2, 100.0), normal(2, 5, 16)),
    "attention with a mask": (
        lambda q, k, v: ops.attention(q, k, v, False, on(q, ALLOWED)),
        normal(2, 4, 3, 2),
        normal(2, 2, 5, 2),
        normal(2, 2, 5, 2) * 2,
    ),
    "self_attention with a bias": (
        lambda x: ops.self_attention(x, 4, 2, None, on(x, BIAS)),
        normal(2, 5, 16),
    ),
    "rotary": (ops.rotary, normal(2, 3, 4)),
    "conv2d": (lambda x, w, b: ops.conv2d(x, w, b, 1, 1), IMAGES, KERNELS, normal(6)),
    "conv2d strided": (lambda x, w: ops.conv2d(x, w, None, 2, 0, 2), IMAGES, HALF_KERNELS),
    "conv2d of pairs": (
        lambda x, w, b: ops.conv2d(x, w, b, (2, 1), (0, 2), 2, (1, 2)),
        IMAGES,
        normal(6, 2, 3, 2),
        normal(6),
    ),
    "conv2d dilated": (lambda x, w: ops.conv2d(x, w, None, 1, 1, 1, 2), IMAGES, KERNELS),
    "conv2d of one row": (
        lambda x, w: ops.conv2d(x, w, None, 1, (1, 0)),
        IMAGES,
        normal(6, 4, 3, 1),
    ),
    "conv1d": (
        lambda x, w, b: ops.conv1d(x, w, b, 2, 3, 2, 2),
        normal(2, 4, 9),
        normal(6, 2, 3),
        normal(6),
    ),
    "max_pool2d": (lambda x: ops.max_pool2d(x, 2), IMAGES),
    "max_pool2d overlapping": (lambda x: ops.max_pool2d(x, 3, 1, 1), IMAGES),
    "avg_pool2d": (lambda x: ops.avg_pool2d(x, 3, 2), IMAGES),
}


def run(name, device="cpu", dtype="float64", change=lambda array: array):
    """The result and all gradients of a case, as arrays of the device."""
    function, *inputs = CASES[name]
    tensors = [
        Tensor(change(arrays.to_device(value.astype(dtype), device)), requires_grad=True)
        for value in inputs
    ]
    out = function(*tensors)
    upstream = generator(0, "upstream").standard_normal(out.shape).astype(dtype)
    out.backward(arrays.to_device(np.asarray(upstream), device))
    return [out.data, *(tensor.grad for tensor in tensors)]


def assert_same_on(device, name, tolerance=1e-11):
    """A case gives on a device what it gives on the host, in arrays of that device."""
    module = arrays.module(device)
    for got, expected in zip(run(name, device), run(name), strict=True):
        assert arrays.module_of(got) is module, f"{type(got)} came out on {device}"
        np.testing.assert_allclose(
            arrays.to_host(got), expected, rtol=tolerance, atol=tolerance, err_msg=name
        )
