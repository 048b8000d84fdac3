"""Arguments for every CUDA kernel, to compare it with the NumPy lines beside it.

``EXAMPLES[name](dtype)`` are the arguments of a kernel, NumPy arrays and numbers; arrays that it
fills hold rubbish at first. A new kernel is tested by getting a line here, and
``test_every_kernel_has_an_example`` asks for one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minidist import ops, optim  # noqa: F401 (so that all kernels are known)
from minidist.engine import array as arrays
from minidist.engine import products, seeds  # noqa: F401
from minidist.engine.kernels import KERNELS, accumulator

random = np.random.default_rng(0)


ONE, TWO = (1, 1), (2, 2)  # settings of both axes


def some(dtype: str, *shape: int) -> np.ndarray:
    return random.standard_normal(shape).astype(dtype)


def rubbish(dtype: Any, *shape: int) -> np.ndarray:
    return np.full(shape, 77).astype(dtype)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x.astype(np.float64))
    return (e / e.sum(-1, keepdims=True)).astype(x.dtype)


def sums(dtype: str, *shape: int) -> np.ndarray:
    """To be filled with what is summed over numbers of ``dtype``."""
    return rubbish(accumulator(np.dtype(dtype)), *shape)


TARGETS = np.array([4, 0, -1, 2, 2])
KEY = (-5, 7)


def _normalise(dtype: str, bias: bool, centred: bool) -> tuple[Any, ...]:
    w, b = some(dtype, 150), some(dtype, 150) if bias else None
    out = rubbish(dtype, 3, 150), rubbish(dtype, 3, 150), sums(dtype, 3, 1)
    return some(dtype, 3, 150), w, b, *out, 1e-5, centred


def _normalise_backward(dtype: str) -> tuple[Any, ...]:
    inverse = (np.abs(some("float64", 3, 1)) + 0.5).astype(accumulator(np.dtype(dtype)))
    return (
        *(some(dtype, 3, 150), some(dtype, 150), some(dtype, 3, 150), inverse),
        *(rubbish(dtype, 3, 150), True),
    )


EXAMPLES: dict[str, list[Any]] = {
    "column_products": [
        lambda t: (some(t, 300, 13), some(t, 300, 13), rubbish(t, 13)),
        lambda t: (some(t, 5, 20), None, rubbish(t, 20)),
    ],
    "draw_mask": [
        lambda t: (rubbish(bool, 3, 13), None, 5, *KEY, 2**31, 13),
        lambda t: (rubbish(bool, 3, 13), np.array([9, 2, 4]), 9, *KEY, 2**30, 13),
    ],
    "kept": [
        lambda t: (rubbish(t, 3, 50), some(t, 3, 50), random.random((3, 50)) > 0.4, 1.0),
        lambda t: (rubbish(t, 3, 50), some(t, 3, 50) * np.inf, random.random((3, 50)) > 0.4, 2.0),
    ],
    "log_softmax": [lambda t: (rubbish(t, 4, 200), some(t, 4, 200) * 9)],
    "log_softmax_backward": [
        lambda t: (rubbish(t, 4, 200), some(t, 4, 200), np.log(softmax(some(t, 4, 200)))),
    ],
    "causal_softmax": [
        lambda t: (some(t, 2, 3, 3, 5) * 9, 3, True),
        lambda t: (some(t, 2, 3, 40, 150), 40, False),
    ],
    "causal_softmax_backward": [lambda t: (some(t, 2, 7, 150), softmax(some(t, 2, 7, 150)))],
    "max_pool": [
        lambda t: (
            *(rubbish(t, 2, 3, 3, 4), rubbish(np.uint8, 2, 3, 3, 4), some(t, 2, 3, 5, 7)),
            *(5, 7, 3, 4, 3, 2, 1),
        ),
        lambda t: (rubbish(t, 2, 3, 3, 4), None, some(t, 2, 3, 5, 7), 5, 7, 3, 4, 3, 2, 1),
    ],
    "max_pool_backward": [
        lambda t: (
            *(rubbish(t, 2, 6, 7, 3), some(t, 2, 3, 4, 5)),
            *(random.integers(0, 9, (2, 3, 4, 5)).astype(np.uint8), 6, 7, 3, 4, 5, 3, 1),
        ),
        lambda t: (
            *(rubbish(t, 2, 6, 8, 3), some(t, 2, 3, 3, 4)),
            *(random.integers(0, 4, (2, 3, 3, 4)).astype(np.uint8), 6, 8, 3, 3, 4, 2, 2),
        ),
    ],
    "normalise": [
        lambda t: _normalise(t, True, True),
        lambda t: _normalise(t, False, False),
    ],
    "normalise_backward": [_normalise_backward],
    "patches": [
        lambda t: (
            rubbish(t, 2 * 3 * 3, 6 * 3),
            some(t, 2, 5, 6, 3),
            5,
            6,
            3,
            2,
            3,
            3,
            3,
            *TWO,
            *ONE,
            *ONE,
        ),
        lambda t: (
            rubbish(t, 2 * 4 * 4, 4),
            some(t, 2, 5, 5, 1),
            5,
            5,
            1,
            2,
            2,
            4,
            4,
            *ONE,
            0,
            0,
            *ONE,
        ),
        # Stride (1, 2), padding (2, 0), dilation (3, 1).
        lambda t: (
            rubbish(t, 2 * 6 * 2, 6 * 3),
            some(t, 2, 5, 6, 3),
            5,
            6,
            3,
            2,
            3,
            6,
            2,
            1,
            2,
            2,
            0,
            3,
            1,
        ),
    ],
    "pointers": [
        lambda t: (rubbish(np.uint64, 3, 24), 1000, 2000, 3000, 4, 2, *range(10, 19)),
        lambda t: (rubbish(np.uint64, 3, 5), 1000, 2000, 3000, 1, 5, *range(10, 19)),
    ],
    "relu_backward": [lambda t: (rubbish(t, 3, 100), some(t, 3, 100), some(t, 3, 100))],
    "scale_down": [
        lambda t: (some(t, 300), np.array(20.0), 5.0),
        lambda t: (some(t, 300), np.array(2.0), 5.0),
        lambda t: (some(t, 300), np.array(np.nan), 5.0),
    ],
    "softmax": [lambda t: (rubbish(t, 4, 200), some(t, 4, 200) * 9)],
    "softmax_backward": [
        lambda t: (rubbish(t, 4, 200), some(t, 4, 200), softmax(some(t, 4, 200))),
    ],
    "softmax_losses": [
        lambda t: (some(t, 5, 6), TARGETS, rubbish(t, 5, 6), sums(t, 5), 0.0, True),
        lambda t: (some(t, 5, 300), abs(TARGETS), rubbish(t, 5, 300), sums(t, 5), 0.1, False),
    ],
    "softmax_losses_backward": [
        lambda t: (softmax(some(t, 5, 6)), TARGETS, some(t).reshape(()), 0.0, True, 0.5),
        lambda t: (softmax(some(t, 5, 300)), abs(TARGETS), some(t).reshape(()), 0.1, False, 0.5),
    ],
    "sum_rows": [
        lambda t: (rubbish(t, 6, 40), some(t, 5, 40), abs(TARGETS), 5),
        lambda t: (rubbish(t, 6, 40), some(t, 0, 40), TARGETS[:0], 0),
    ],
    "take_rows": [lambda t: (rubbish(t, 5, 40), some(t, 6, 40), abs(TARGETS), 6)],
}

TOLERANCE = {"float64": 1e-12, "float32": 2e-5, "float16": 4e-3}


def check(device: str, name: str, dtype: str) -> None:
    """The kernel fills the same arrays on a device as its NumPy lines do on the host."""
    for example in EXAMPLES[name]:
        given = example(dtype)
        there = [
            arrays.to_device(value.copy(), device) if isinstance(value, np.ndarray) else value
            for value in given
        ]
        KERNELS[name].function(np, *given)
        KERNELS[name].launch(arrays.module(device), tuple(there))
        for got, expected in zip(there, given, strict=True):
            if isinstance(expected, np.ndarray):
                np.testing.assert_allclose(
                    arrays.to_host(got).astype(np.float64),
                    expected.astype(np.float64),
                    rtol=TOLERANCE[dtype],
                    atol=TOLERANCE[dtype],
                    err_msg=f"{name}, {dtype}",
                )
