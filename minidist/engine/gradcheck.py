"""Check a backward against numeric derivatives: for the tests, the lessons and a user's own op.

For each element i of the input, the gradient must equal the central difference

    ∂f/∂xᵢ  ≈  (f(x + ε eᵢ) - f(x - ε eᵢ)) / 2ε

where eᵢ is 1 at i and 0 elsewhere. The error message names the element with the largest error.
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
    shape. The sum of its outputs, each times a random weight, is the scalar that is differentiated.
    Running averages of batch norm do not change. ``tolerance`` is relative to the largest numeric
    gradient if that is above 1, and else absolute. Raises TypeError for inputs of another dtype,
    and GradientShapeError if a gradient does not have the shape of its input.

    >>> gradcheck(lambda x: x * x, np.array([1.0, -2.0]))
    """
    for position, value in enumerate(inputs):
        if value.dtype != np.float64:
            raise TypeError(
                f"gradcheck needs float64 inputs, and input {position} is {value.dtype}"
            )

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
