"""Gradient inversion: reconstruct a training sample from its gradient.

A linear layer with a bias computes y = x W + b. For one sample with δ = the gradient of y,

    gradient of W = x ⊗ δ,  gradient of b = δ        so  x = (gradient of W)_j / (gradient of b)_j

for every output j with δ_j ≠ 0. So a division gives the exact input (Phong et al.,
"Privacy-preserving deep learning via additively homomorphic encryption", 2018, section III). For
the first layer of a model this is the sample itself. It does not depend on the loss, on the later
layers, or on training.

For several samples the gradients are sums. The quotient of output j is then a mixture, with weights
δ_nj, of the samples for which the output is active. If a ReLU is active for only one sample of the
batch, its quotient is still this sample; the more samples, the fewer such outputs. A search for
inputs whose gradient matches can reconstruct more (``matching.py``).

Noise prevents this: the gradient of b has small values, so noise in it changes the quotient a lot.
"""

from __future__ import annotations

import math

import numpy as np

from minidist.engine.array import Array


def invert_linear(weight_grad: Array, bias_grad: Array) -> Array:
    """The sample with these gradients: (i, o) and (o,) → (i,).

    The least-squares solution over all outputs; exact for one sample without noise. Raises
    ValueError if the gradient of the bias is 0.

    >>> x, delta = np.array([1.0, 2.0, 3.0]), np.array([0.5, 0.0, -0.25])
    >>> invert_linear(np.outer(x, delta), delta)
    array([1., 2., 3.])
    """
    square = float(bias_grad @ bias_grad)
    if square == 0:
        raise ValueError("invert_linear: the gradient of the bias is 0: no output was active")
    return weight_grad @ bias_grad / square  # (i, o) @ (o,) -> (i,)


def invert_each(weight_grad: Array, bias_grad: Array) -> Array:
    """The quotient of each active output: (i, o) and (o,) → (active outputs, i).

    Each is a sample or a mixture. Outputs whose bias has gradient 0 are left out.
    """
    active = np.abs(bias_grad) > 1e-9 * np.abs(bias_grad).max(initial=0)
    return (weight_grad[:, active] / bias_grad[active]).T


def psnr(image: Array, other: Array, span: float = 1.0) -> float:
    """The similarity of two images: 10 log₁₀(span²/mean squared error), in decibels.

    ``span`` is the difference between white and black. Below 10 nothing can be recognised, from
    about 20 on an image can be, from 40 on no difference is visible.

    >>> psnr(np.zeros(4), np.full(4, 0.1))
    20.0
    """
    error = float(np.mean((np.asarray(image, float) - np.asarray(other, float)) ** 2))
    return math.inf if error == 0 else round(10 * math.log10(span**2 / error), 9)


def best_psnr(image: Array, found: Array, span: float = 1.0) -> float:
    """The largest PSNR of the attempts ``found`` (n, i) at an image (i,); -inf if n is 0."""
    errors = ((np.asarray(found, float) - image) ** 2).mean(axis=-1)
    return psnr(image, found[int(errors.argmin())], span) if len(errors) else -math.inf
