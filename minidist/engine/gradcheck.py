"""Check a backward against numbers: for the tests, the lessons and a user's own op.

For a function f and a random direction v, the analytic gradient must predict the slope

    ∇f(x) · v  ≈  (f(x + εv) - f(x - εv)) / 2ε

One element at a time this finds *where* a backward is wrong; the error message shows it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from minidist.engine.mode import keep_buffers
from minidist.engine.seeds import generator
from minidist.engine.tensor import Tensor, no_grad


def gradcheck(
    function: Callable[..., Tensor],
    *inputs: np.ndarray,
    epsilon: float = 1e-6,
    tolerance: float = 1e-6,
    seed: int = 0,
) -> None:
    """Raise AssertionError if the gradients of ``function`` differ from numeric ones.

    ``inputs`` are float64 arrays; ``function`` takes them as tensors and returns a tensor of any
    shape (a random projection makes it a scalar, so that every output counts differently). Running
    averages of batch norm stay as they are. A gradient of another shape than its input's is a
    GradientShapeError, which names the op.
    ``tolerance`` is relative to the largest gradient, and absolute below 1.

    >>> gradcheck(lambda x: x * x, np.array([1.0, -2.0]))
    """
    for position, value in enumerate(inputs):
        if value.dtype != np.float64:
            raise TypeError(f"gradcheck needs float64 inputs, input {position} is {value.dtype}")

    def projected(*arrays: np.ndarray, grad: bool = False) -> tuple[Tensor, list[Tensor]]:
        tensors = [Tensor(array, requires_grad=grad) for array in arrays]
        out = function(*tensors)
        weights = generator(seed, "gradcheck").standard_normal(out.shape)
        return (out * Tensor(weights)).sum(), tensors

    with keep_buffers():
        _compare(function, projected, inputs, epsilon, tolerance)


def _compare(
    function: Callable[..., Tensor],
    projected: Callable[..., tuple[Tensor, list[Tensor]]],
    inputs: tuple[np.ndarray, ...],
    epsilon: float,
    tolerance: float,
) -> None:
    loss, tensors = projected(*inputs, grad=True)
    loss.backward()
    for position, (array, tensor) in enumerate(zip(inputs, tensors, strict=True)):
        analytic = tensor.grad if tensor.grad is not None else np.zeros_like(array)
        numeric = np.zeros_like(array)
        with no_grad():
            for index in np.ndindex(array.shape):
                moved = [np.array(other) for other in inputs]
                moved[position][index] = array[index] + epsilon
                high = projected(*moved)[0].item()
                moved[position][index] = array[index] - epsilon
                low = projected(*moved)[0].item()
                numeric[index] = (high - low) / (2 * epsilon)
        error = np.abs(analytic - numeric)
        bound = tolerance * max(1.0, float(np.abs(numeric).max(initial=0.0)))
        if not (error <= bound).all():
            worst = np.unravel_index(
                np.argmax(np.where(np.isnan(error), np.inf, error)), error.shape
            )
            name = getattr(function, "__name__", function)
            raise AssertionError(
                f"input {position} of {name}: the gradient at {tuple(map(int, worst))} is "
                f"{analytic[worst]:.9g}, and numerically {numeric[worst]:.9g} "
                f"(difference {error[worst]:.2g}, allowed {bound:.2g})"
            )
