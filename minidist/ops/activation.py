"""Nonlinearities: nonlinear functions of one tensor, element by element.

If the derivative can be computed from the result (tanh, sigmoid, relu), the result is saved for the
backward: the next layer saves it anyway. For GELU and SiLU the *derivative itself* is computed in
the forward, from the same intermediate values, and only it is saved.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from minidist.engine.array import Array
from minidist.engine.fusion import fused
from minidist.engine.kernels import kernel, wide
from minidist.engine.tensor import Tensor, recording
from minidist.ops.chunks import chunks
from minidist.ops.operands import floating
from minidist.ops.selection import select


def relu(x: Tensor) -> Tensor:
    """max(x, 0)."""
    x = x if isinstance(x, Tensor) else Tensor(x)
    xp = x.xp
    y = xp.maximum(x.data, 0)

    def backward(grad: Array) -> Any:
        grad_x = xp.empty_like(y)
        _relu_backward(xp, grad_x, grad, y)
        return (grad_x,)

    return Tensor.of(y, (x,), backward)


@kernel(
    "T *grad_x, const T *grad, const T *y",
    "grad_x[i] = y[i] > T(0) ? grad[i] : T(0);",
    over="points",
)
def _relu_backward(xp: Any, grad_x: Array, grad: Array, y: Array) -> None:
    select(xp, grad_x, grad, y > 0)


def leaky_relu(x: Tensor, slope: float = 0.01) -> Tensor:
    """x where x > 0, else ``slope`` · x."""
    x = floating(x)
    xp, data = x.xp, x.data
    y = xp.where(data > 0, data, data * slope)
    positive = data > 0  # one byte for each element

    def backward(grad: Array) -> Any:
        return (xp.where(positive, grad, grad * slope),)

    return Tensor.of(y, (x,), backward)


def softplus(x: Tensor) -> Tensor:
    """log(1 + eˣ), computed as max(x, 0) + log(1 + e^-|x|), which cannot overflow."""
    x = floating(x)
    xp, data = x.xp, x.data
    return Tensor.of(_softplus(xp, data), (x,), lambda grad: (grad * sigmoid_array(xp, data),))


def log_sigmoid(x: Tensor) -> Tensor:
    """log(1 / (1 + e⁻ˣ)) = -softplus(-x): -100 at x = -100, where the sigmoid is nearly 0."""
    x = floating(x)
    xp, data = x.xp, x.data
    return Tensor.of(-_softplus(xp, -data), (x,), lambda grad: (grad * sigmoid_array(xp, -data),))


def _softplus(xp: Any, x: Array) -> Array:
    return xp.maximum(x, 0) + xp.log1p(xp.exp(-xp.abs(x)))


def tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent, (eˣ - e⁻ˣ) / (eˣ + e⁻ˣ)."""
    x = floating(x)
    y = x.xp.tanh(x.data)
    return Tensor.of(y, (x,), lambda grad: (grad * (1 - y * y),))


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e⁻ˣ), accurate for large and small x: see ``sigmoid_array``."""
    x = floating(x)
    y = sigmoid_array(x.xp, wide(x.data)).astype(x.dtype, copy=False)
    return Tensor.of(y, (x,), lambda grad: (grad * (y * (1 - y)),))


def sigmoid_array(xp: Any, x: Array) -> Array:
    """The sigmoid of an array, as e^min(x, 0) / (1 + e^-|x|).

    Both exponents are at most 0, so nothing overflows. For x far below 0 the result is eˣ, where
    (1 + tanh(x / 2)) / 2 would be rounded to 0.
    """
    return xp.exp(xp.minimum(x, 0)) / (1 + xp.exp(-xp.abs(x)))


def silu(x: Tensor) -> Tensor:
    """x · sigmoid(x), also called swish (arXiv 1702.03118)."""
    return _with_derivative("silu", x, _silu)


@fused
def _silu(xp: Any, x: Array, y: Array, derivative: Array | None) -> None:
    x = wide(x)
    s = sigmoid_array(xp, x)
    xp.multiply(x, s, out=y)
    if derivative is not None:
        derivative[...] = s + y * (1 - s)


def gelu(x: Tensor, exact: bool = False) -> Tensor:
    """x · Φ(x), with Φ the normal distribution function (arXiv 1606.08415).

    The default is Hendrycks' and Gimpel's approximation 0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))),
    as in GPT-2; ``exact=True`` uses the error function, as PyTorch does by default.
    """
    return _with_derivative("gelu", x, _gelu_exact if exact else _gelu)


@fused
def _gelu(xp: Any, x: Array, y: Array, derivative: Array | None) -> None:
    x = wide(x)
    a = _gelu_factor(xp, x)
    inner = a * x
    xp.tanh(inner, out=inner)
    _gelu_outer(xp, x, y, derivative, a, inner)


SCALE = math.sqrt(2 / math.pi)


@fused
def _gelu_factor(xp: Any, x: Array) -> Array:
    """a = √(2/π) (1 + 0.044715 x²), so that the tanh is that of a x."""
    a = xp.multiply(x, x)
    a *= SCALE * 0.044715
    a += SCALE
    return a


@fused
def _gelu_outer(
    xp: Any, x: Array, y: Array, derivative: Array | None, a: Array, scratch: Array
) -> None:
    """Fill y and ``derivative`` from the tanh, which is in ``scratch``."""
    cdf = scratch  # Φ = (1 + tanh) / 2
    cdf *= 0.5
    cdf += 0.5
    xp.multiply(x, cdf, out=y)
    if derivative is not None:  # Φ + x Φ' = Φ + 2 y (1 - Φ) √(2/π) (1 + 3 · 0.044715 x²)
        rest = a * 6
        rest -= 4 * SCALE  # and 2 √(2/π) (1 + 3 · 0.044715 x²) = 6 a - 4 √(2/π)
        rest *= y
        xp.subtract(1, cdf, out=derivative)
        derivative *= rest
        derivative += cdf


@fused
def _gelu_exact(xp: Any, x: Array, y: Array, derivative: Array | None) -> None:
    x = wide(x)
    # erf is added to 1, so only float64 needs one that is accurate near 0.
    error_function = erf_array if x.dtype.itemsize > 4 else _erf_far
    cdf = error_function(xp, x * math.sqrt(0.5))
    cdf += 1
    cdf *= 0.5
    xp.multiply(x, cdf, out=y)
    if derivative is not None:  # Φ(x) + x φ(x)
        density = x * x
        density *= -0.5
        xp.exp(density, out=density)
        density *= 1 / math.sqrt(2 * math.pi)
        density *= x
        xp.add(cdf, density, out=derivative)


def erf(x: Tensor) -> Tensor:
    """The error function 2/√π ∫₀ˣ exp(-t²) dt."""
    x = floating(x)
    data, xp = x.data, x.xp
    y = erf_array(xp, wide(data)).astype(data.dtype, copy=False)

    def backward(grad: Array) -> Any:
        return (grad * (2 / math.sqrt(math.pi)) * xp.exp(-data * data),)

    return Tensor.of(y, (x,), backward)


def _with_derivative(name: str, x: Tensor, formula: Callable[..., None]) -> Tensor:
    """An op from ``formula(xp, x, y, derivative)``, which fills y = f(x) and f'(x)."""
    x = floating(x)
    xp, shape = x.xp, x.data.shape
    data = xp.ascontiguousarray(x.data).reshape(-1)
    y = xp.empty_like(data)
    derivative = xp.empty_like(data) if recording(x) else None
    for part in chunks(data):
        formula(xp, data[part], y[part], None if derivative is None else derivative[part])

    def backward(grad: Array) -> Any:
        return (grad * derivative.reshape(shape),)  # type: ignore[union-attr]

    backward.__qualname__ = f"{name}.backward"
    return Tensor.of(y.reshape(shape), (x,), backward)


# W. J. Cody, "Rational Chebyshev approximations for the error function", Math. Comp. 23 (1969):
# erf x = x · P(x²)/Q(x²) up to 0.46875, and erf x = 1 - exp(-x²) · P(x)/Q(x) beyond.
_NEAR = (
    (1.85777706184603153e-1, 3.16112374387056560e0, 1.13864154151050156e2, 3.77485237685302021e2,
     3.20937758913846947e3),
    (1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3,
     2.84423683343917062e3),
)  # fmt: skip
_FAR = (
    (2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594e0, 6.61191906371416295e1,
     2.98635138197400131e2, 8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3,
     1.23033935479799725e3),
    (1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2,
     1.62138957456669019e3, 3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3,
     1.23033935480374942e3),
)  # fmt: skip


@fused
def erf_array(xp: Any, x: Array) -> Array:
    """The error function of an array, to about 1e-15 in float64. NumPy and CuPy have none."""
    size = xp.minimum(xp.abs(x), 6)  # erf 6 is 1 in float64
    square = size * size
    out = 1 - xp.exp(-square) * _ratio(size, _FAR)
    near = size * _ratio(xp.minimum(square, 0.25), _NEAR)
    near *= size <= 0.46875  # one of the two terms is 0: a sum is many times faster than xp.where
    out *= size > 0.46875
    out += near
    return xp.copysign(out, x)


@fused
def _erf_far(xp: Any, x: Array) -> Array:
    """The error function faster, by Cody's second formula alone.

    Its error is below 1e-11. Near 0 that is not small relative to erf x, but it is small enough for
    float32 if the result is added to a larger number.
    """
    size = xp.minimum(xp.abs(x), 6)
    return xp.copysign(1 - xp.exp(-(size * size)) * _ratio(size, _FAR), x)


def _ratio(x: Array, coefficients: tuple[tuple[float, ...], tuple[float, ...]]) -> Array:
    """P(x)/Q(x) by Horner's rule."""
    above, below = (values[0] * x for values in coefficients)
    above += coefficients[0][1]
    below += coefficients[1][1]
    for p, q in zip(coefficients[0][2:], coefficients[1][2:], strict=True):
        above *= x
        above += p
        below *= x
        below += q
    above /= below
    return above
