"""The bench's models as functions of their parameters, on any module with NumPy's functions.

For libraries that take such a function and return its gradients: HIPS autograd, and JAX. Parameters
are in the order of minidist's models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Parameters = list[Any]
Forward = Callable[[Parameters, Any], Any]


def cross_entropy(xp: Any, logits: Any, targets: np.ndarray) -> Any:
    """The sum over all targets."""
    z = xp.reshape(logits, (-1, logits.shape[-1]))
    z = z - xp.max(z, axis=1, keepdims=True)
    log_p = z - xp.log(xp.sum(xp.exp(z), axis=1, keepdims=True))
    return -xp.sum(log_p[np.arange(len(z)), targets.reshape(-1)])


def mlp(xp: Any) -> Forward:
    """Alternately Linear and ReLU."""

    def forward(parameters: Parameters, x: Any) -> Any:
        for weight, bias in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
            x = xp.maximum(xp.dot(x, weight) + bias, 0)
        return xp.dot(x, parameters[-2]) + parameters[-1]

    return forward


def cnn(xp: Any, convolution: Callable[[Any, Any, Any], Any]) -> Forward:
    """The same as ``minidist.models.cnn``; ``convolution(x, weight, bias)`` is 3 × 3, padded by 1.

    Its shapes: x (n, c, h, w), weight (o, c, 3, 3), bias (o,) → (n, o, h, w).
    """
    head = mlp(xp)

    def forward(parameters: Parameters, x: Any) -> Any:
        x = x[:, None]
        for layer in range(2):
            x = xp.maximum(convolution(x, *parameters[2 * layer : 2 * layer + 2]), 0)
            n, c, h, w = x.shape
            x = xp.max(xp.reshape(x, (n, c, h // 2, 2, w // 2, 2)), axis=(3, 5))
        return head(parameters[4:], xp.reshape(x, (len(x), -1)))

    return forward


def norm(xp: Any, x: Any, weight: Any, bias: Any) -> Any:
    """Layer norm."""
    x = x - xp.mean(x, axis=-1, keepdims=True)
    return x / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + 1e-5) * weight + bias


def gpt(xp: Any, heads: int) -> Forward:
    """The same as ``minidist.models.gpt``."""

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
            qkv = xp.dot(norm(xp, x, n1, c1), w_qkv) + b_qkv
            qkv = xp.reshape(qkv, (b, length, 3, heads, width // heads))
            q, k, v = (xp.transpose(qkv[:, :, i], (0, 2, 1, 3)) for i in range(3))
            s = xp.matmul(q, xp.transpose(k, (0, 1, 3, 2))) / (width // heads) ** 0.5 + mask
            p = xp.exp(s - xp.max(s, axis=-1, keepdims=True))
            p = p / xp.sum(p, axis=-1, keepdims=True)
            y = xp.transpose(xp.matmul(p, v), (0, 2, 1, 3))
            x = x + xp.dot(xp.reshape(y, (b, length, width)), w_out) + b_out
            u = xp.dot(norm(xp, x, n2, c2), w_up) + b_up
            u = 0.5 * u * (1 + xp.tanh(0.7978845608 * (u + 0.044715 * u * u * u)))
            x = x + xp.dot(u, w_down) + b_down
        return xp.dot(norm(xp, x, *rest[-2:]), table.T)

    return forward
