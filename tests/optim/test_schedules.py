"""Schedules at the steps where they bend, and clipping."""

import math

import numpy as np
import pytest

from minidist.optim import clip_by_global_norm, global_norm, linear_scaling
from minidist.optim.schedules import constant, cosine, linear, step_decay, warm_up


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (constant(0.1), {0: 0.1, 1000: 0.1}),
        (step_decay(1.0, every=10, factor=0.5), {0: 1.0, 9: 1.0, 10: 0.5, 25: 0.25}),
        (linear(1.0, steps=10, final=0.2), {0: 1.0, 5: 0.6, 10: 0.2, 99: 0.2}),
        (cosine(1.0, steps=10), {0: 1.0, 5: 0.5, 10: 0.0, 99: 0.0}),
        (cosine(1.0, steps=10, final=0.1), {0: 1.0, 5: 0.55, 10: 0.1}),
        (warm_up(4, 1.0), {0: 0.25, 1: 0.5, 3: 1.0, 4: 1.0, 50: 1.0}),
        (warm_up(4, cosine(1.0, steps=10)), {3: 1.0, 4: 1.0, 9: 0.5, 14: 0.0}),
    ],
)
def test_schedule(schedule, expected):
    got = {step: schedule(step) for step in expected}
    assert got == pytest.approx(expected, abs=1e-12)


def test_linear_scaling():
    assert linear_scaling(0.1, batch=8192, reference=256) == pytest.approx(3.2)


def test_schedules_refuse_no_steps():
    for make in (lambda: cosine(1, 0), lambda: step_decay(1, 0), lambda: warm_up(0, 1)):
        with pytest.raises(ValueError, match="must be positive, not 0"):
            make()


@pytest.mark.parametrize("size", [0, 1, 5, 200_000])
def test_global_norm(size):
    grad = np.linspace(-1, 2, size)
    assert global_norm(grad) == pytest.approx(np.linalg.norm(grad), rel=1e-13)


def test_clip_scales_to_the_limit_and_keeps_the_direction():
    grad = np.array([3.0, 4.0])
    assert clip_by_global_norm(grad, 1.0) == 5.0
    np.testing.assert_allclose(grad, [0.6, 0.8], rtol=1e-15)
    assert clip_by_global_norm(grad, 2.0) == pytest.approx(1.0)
    np.testing.assert_allclose(grad, [0.6, 0.8], rtol=1e-15)  # short enough: left alone


def test_clip_of_shards_is_the_clip_of_the_whole():
    grad = np.arange(10.0)
    squares = {4: float((grad[4:] ** 2).sum()), 0: float((grad[:4] ** 2).sum())}
    shard = grad[:4].copy()

    def reduce(total):
        total += squares[4]  # what the other rank has

    norm = clip_by_global_norm(shard, 1.0, reduce)
    assert norm == pytest.approx(math.sqrt(285.0))
    np.testing.assert_allclose(shard, grad[:4] / norm, rtol=1e-14)


def test_a_norm_in_float32_keeps_its_digits():
    grad = np.full(3_000_000, 0.1, np.float32)
    assert global_norm(grad) == pytest.approx(
        math.sqrt(3e6 * float(np.float32(0.1)) ** 2), rel=1e-6
    )
