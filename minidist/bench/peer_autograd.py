"""The bench's models in HIPS autograd, which also uses NumPy's ops.

It has no convolution that needs only NumPy, so the CNN is a sum over the elements of the kernel.
"""

from __future__ import annotations

from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd import grad

from minidist.bench import functional
from minidist.bench.cases import Case
from minidist.bench.timing import Step


def convolution(x: Any, weight: Any, bias: Any) -> Any:
    h, w = x.shape[2:]
    x = anp.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)], "constant")
    places = [
        anp.einsum("nchw,oc->nohw", x[:, :, i : i + h, j : j + w], weight[:, :, i, j])
        for i in range(3)
        for j in range(3)
    ]
    return sum(places[1:], places[0]) + bias[:, None, None]


def forward_of(kind: str, arguments: tuple[Any, ...]) -> functional.Forward:
    """The model's forward, as a function of its parameters."""
    if kind == "cnn":
        return functional.cnn(anp, convolution)
    return functional.gpt(anp, arguments[-1]) if kind == "gpt" else functional.mlp(anp)


def step(case: Case, device: str, dtype: str) -> Step:
    """One training step, as a function."""
    forward = forward_of(case.kind, case.arguments)
    parameters = [parameter.data.copy() for parameter in case.model.init(0).parameters()]
    count = case.targets.size
    gradients = [
        grad(lambda p, x=x, y=y: functional.cross_entropy(anp, forward(p, x), y) / count)
        for x, y in case.parts()
    ]
    means = [np.zeros_like(parameter) for parameter in parameters]
    squares = [np.zeros_like(parameter) for parameter in parameters]

    def run() -> None:
        by_part = [gradient(parameters) for gradient in gradients]
        total = [sum(parts[1:], parts[0]) for parts in zip(*by_part, strict=True)]
        for w, m, v, g in zip(parameters, means, squares, total, strict=True):
            if case.rule == "sgd":
                w -= 1e-3 * g
                continue
            m += 0.1 * (g - m)
            v += 0.001 * (g * g - v)
            w -= 1e-3 * m / (np.sqrt(v) + 1e-8)

    return run


def one_element(device: str) -> Step:
    """The forward and backward of one product of two numbers."""
    x, y = np.ones(1, np.float32), np.ones(1, np.float32)
    slopes = grad(lambda pair: (pair[0] * pair[1])[0])
    return lambda: slopes([x, y])
