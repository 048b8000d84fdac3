"""The bench's models in JAX: a whole training step compiled by ``jit``, its memory given back."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from minidist.bench import functional
from minidist.bench.cases import Case
from minidist.bench.timing import Step


def convolution(x: Any, weight: Any, bias: Any) -> Any:
    return jax.lax.conv(x, weight, (1, 1), "SAME") + bias[:, None, None]


def forward_of(kind: str, arguments: tuple[Any, ...]) -> functional.Forward:
    """The model's forward, as a function of its parameters."""
    if kind == "cnn":
        return functional.cnn(jnp, convolution)
    return functional.gpt(jnp, arguments[-1]) if kind == "gpt" else functional.mlp(jnp)


def step(case: Case, device: str, dtype: str) -> Step:
    """One training step, as a function."""
    forward, count = forward_of(case.kind, case.arguments), case.targets.size
    parts = [(jnp.asarray(x), jnp.asarray(y)) for x, y in case.parts()]

    def loss(parameters: Any, x: Any, y: Any) -> Any:
        return functional.cross_entropy(jnp, forward(parameters, x), y) / count

    def train(parameters: Any, means: Any, squares: Any, parts: Any) -> Any:
        by_part = [jax.grad(loss)(parameters, x, y) for x, y in parts]
        grads = [sum(parts[1:], parts[0]) for parts in zip(*by_part, strict=True)]
        if case.rule == "sgd":
            return [w - 1e-3 * g for w, g in zip(parameters, grads, strict=True)], means, squares
        means = [m + 0.1 * (g - m) for m, g in zip(means, grads, strict=True)]
        squares = [v + 0.001 * (g * g - v) for v, g in zip(squares, grads, strict=True)]
        stepped = [
            w - 1e-3 * m / (jnp.sqrt(v) + 1e-8)
            for w, m, v in zip(parameters, means, squares, strict=True)
        ]
        return stepped, means, squares

    compiled = jax.jit(train, donate_argnums=(0, 1, 2))
    parameters = [jnp.asarray(parameter.data) for parameter in case.model.init(0).parameters()]
    zeros = [jnp.zeros_like(parameter) for parameter in parameters]
    state = [(parameters, zeros, [jnp.zeros_like(zero) for zero in zeros])]

    def run() -> None:
        state[0] = compiled(*state[0], parts)
        jax.block_until_ready(state[0])

    return run


def one_element(device: str) -> Step:
    """The forward and backward of one product of two numbers, compiled."""
    slopes = jax.jit(jax.grad(lambda pair: (pair[0] * pair[1])[0]))
    pair = [jnp.ones(1), jnp.ones(1)]
    return lambda: jax.block_until_ready(slopes(pair))
