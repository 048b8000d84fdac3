"""Checkpointing gives the same result and gradients, bitwise, and keeps less."""

import numpy as np
import pytest

from minidist import nn
from minidist.engine.recompute import checkpoint
from minidist.engine.seeds import draws
from minidist.engine.tensor import Tensor
from minidist.inspect.meter import measure_saved


def block():
    return nn.Residual(
        nn.LayerNorm(8), nn.Linear(8, 32), nn.GELU(), nn.Dropout(0.3), nn.Linear(32, 8)
    )


def run(model, through):
    x = Tensor(np.random.default_rng(1).standard_normal((5, 8)), requires_grad=True)
    model.zero_grad()
    with measure_saved(exclude=[model.flat.data_and_loss]) as meter:
        with draws(seed=3, step=7):  # and not any more during the backward
            y = x
            for piece in model.blocks.values():
                y = through(piece, y)
            kept = meter.bytes
        (y * y).sum().backward()
    return y.data, x.grad, model.flat.grad.copy(), kept


def test_the_same_numbers_for_less_memory():
    model = nn.Sequential(*[block() for _ in range(4)]).init(0, dtype="float64")
    *plain, plain_kept = run(model, lambda piece, x: piece(x))
    *again, again_kept = run(model, checkpoint)
    for got, expected in zip(again, plain, strict=True):
        np.testing.assert_array_equal(got, expected)
    assert again_kept == 4 * 5 * 8 * 8, "the input of each of four blocks, in float64"
    assert plain_kept > 4 * again_kept


def test_an_input_must_require_gradients():
    with pytest.raises(ValueError, match="no input requires gradients"):
        checkpoint(nn.Linear(2, 2).init(0), np.ones((1, 2), np.float32))
