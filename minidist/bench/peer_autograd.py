"""The bench's models in HIPS autograd, which also uses NumPy's ops.

It takes a function of the parameters and returns their gradients. It has no convolution that needs
only NumPy, so the CNN is a sum over the elements of the kernel.
"""

from __future__ import annotations

from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd import grad

from minidist.bench.timing import Step

Parameters = list[Any]


def cross_entropy(logits: Any, targets: np.ndarray) -> Any:
    """Mean over all targets."""
    z = anp.reshape(logits, (-1, logits.shape[-1]))
    z = z - anp.max(z, axis=1, keepdims=True)
    log_p = z - anp.log(anp.sum(anp.exp(z), axis=1, keepdims=True))
    return -anp.mean(log_p[np.arange(len(z)), targets.reshape(-1)])


def mlp(parameters: Parameters, x: Any) -> Any:
    """Alternately Linear and ReLU."""
    for weight, bias in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
        x = anp.maximum(anp.dot(x, weight) + bias, 0)
    return anp.dot(x, parameters[-2]) + parameters[-1]


def convolution(x: Any, weight: Any, bias: Any) -> Any:
    """3 × 3 with a padding of 1: (n, c, h, w) → (n, o, h, w)."""
    h, w = x.shape[2:]
    x = anp.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)], "constant")
    places = [
        anp.einsum("nchw,oc->nohw", x[:, :, i : i + h, j : j + w], weight[:, :, i, j])
        for i in range(3)
        for j in range(3)
    ]
    return sum(places[1:], places[0]) + bias[:, None, None]


def cnn(parameters: Parameters, x: Any) -> Any:
    """The same as ``minidist.models.cnn``."""
    x = x[:, None]
    for layer in range(2):
        x = anp.maximum(convolution(x, *parameters[2 * layer : 2 * layer + 2]), 0)
        n, c, h, w = x.shape
        x = anp.max(anp.reshape(x, (n, c, h // 2, 2, w // 2, 2)), axis=(3, 5))
    return mlp(parameters[4:], anp.reshape(x, (len(x), -1)))


def norm(x: Any, weight: Any, bias: Any) -> Any:
    """Layer norm."""
    x = x - anp.mean(x, axis=-1, keepdims=True)
    return x / anp.sqrt(anp.mean(x * x, axis=-1, keepdims=True) + 1e-5) * weight + bias


def gpt(heads: int) -> Any:
    """The same as ``minidist.models.gpt``: parameters in its order."""

    def forward(parameters: Parameters, tokens: np.ndarray) -> Any:
        table, position, *rest = parameters
        b, length = tokens.shape
        width = table.shape[1]
        x = table[tokens] + position[:length]
        mask = np.triu(np.full((length, length), -np.inf, np.float32), 1)
        for start in range(0, len(rest) - 2, 12):
            n1, c1, w_qkv, b_qkv, w_out, b_out, n2, c2, w_up, b_up, w_down, b_down = rest[
                start : start + 12
            ]
            qkv = anp.dot(norm(x, n1, c1), w_qkv) + b_qkv
            qkv = anp.reshape(qkv, (b, length, 3, heads, width // heads))
            q, k, v = (anp.transpose(qkv[:, :, i], (0, 2, 1, 3)) for i in range(3))
            s = anp.matmul(q, anp.transpose(k, (0, 1, 3, 2))) / (width // heads) ** 0.5 + mask
            p = anp.exp(s - anp.max(s, axis=-1, keepdims=True))
            p = p / anp.sum(p, axis=-1, keepdims=True)
            y = anp.transpose(anp.matmul(p, v), (0, 2, 1, 3))
            x = x + anp.dot(anp.reshape(y, (b, length, width)), w_out) + b_out
            u = anp.dot(norm(x, n2, c2), w_up) + b_up
            u = 0.5 * u * (1 + anp.tanh(0.7978845608 * (u + 0.044715 * u * u * u)))
            x = x + anp.dot(u, w_down) + b_down
        return anp.dot(norm(x, *rest[-2:]), table.T)

    return forward


def step(forward: Any, parameters: Parameters, inputs: np.ndarray, targets: np.ndarray) -> Step:
    """One training step with Adam, as a function."""
    gradient = grad(lambda parameters: cross_entropy(forward(parameters, inputs), targets))
    means = [np.zeros_like(parameter) for parameter in parameters]
    squares = [np.zeros_like(parameter) for parameter in parameters]

    def run() -> None:
        gradients = gradient(parameters)
        for w, m, v, g in zip(parameters, means, squares, gradients, strict=True):
            m += 0.1 * (g - m)
            v += 0.001 * (g * g - v)
            w -= 1e-3 * m / (np.sqrt(v) + 1e-8)

    return run


def one_element() -> Step:
    """The forward and backward of one product of two numbers."""
    x, y = np.ones(1, np.float32), np.ones(1, np.float32)
    slopes = grad(lambda pair: (pair[0] * pair[1])[0])
    return lambda: slopes([x, y])
