"""A gradient is not anonymous: the attack that reads a training image out of it.

A linear layer with a bias computes y = x W + b. For one sample with δ = the gradient of y,

    gradient of W = x ⊗ δ,  gradient of b = δ        so  x = (gradient of W)_j / (gradient of b)_j

for every output j whose δ_j is not 0: a division gives the input back, digit by digit (Phong et
al., "Privacy-preserving deep learning via additively homomorphic encryption", 2018, section III).
If it is the first layer of a model, that is the sample itself. What the loss is, what comes behind
the layer and whether the model has been trained does not matter.

Of several samples the gradients are sums, and the quotient of output j is a mixture, with weights
δ_nj, of those samples for which the output is active. A ReLU that only one sample of the batch has
switched on still gives this sample back whole: the more samples, the fewer such outputs. Searching
for inputs whose gradient matches gets further (``matching.py``).

Noise in the gradient of b, of which the largest numbers are small, ruins the quotient.
"""

from __future__ import annotations

import math

import numpy as np

from minidist.engine.array import Array


def invert_linear(weight_grad: Array, bias_grad: Array) -> Array:
    """The one sample of which these are the gradients: (i, o) and (o,) → (i,).

    The least-squares solution over all outputs, exact if there is only one sample and no noise.
    Raises ValueError if the gradient of the bias is 0: then it says nothing.

    >>> x, delta = np.array([1.0, 2.0, 3.0]), np.array([0.5, 0.0, -0.25])
    >>> invert_linear(np.outer(x, delta), delta)
    array([1., 2., 3.])
    """
    square = float(bias_grad @ bias_grad)
    if square == 0:
        raise ValueError("invert_linear: the gradient of the bias is 0: no output was active")
    return weight_grad @ bias_grad / square  # (i, o) @ (o,) -> (i,)


def invert_each(weight_grad: Array, bias_grad: Array) -> Array:
    """What each output has seen: (i, o) and (o,) → (active outputs, i), each a sample or a mixture.

    Outputs whose bias has no gradient have seen nothing, and are left out.
    """
    active = np.abs(bias_grad) > 1e-9 * np.abs(bias_grad).max(initial=0)
    return (weight_grad[:, active] / bias_grad[active]).T


def psnr(image: Array, other: Array, span: float = 1.0) -> float:
    """How much two images are alike: 10 log₁₀(span²/mean squared error), in decibels.

    ``span`` is the difference between white and black. Below 10 nothing is to be seen, from about
    20 on an image is recognised, from 40 on the eye finds no difference.

    >>> psnr(np.zeros(4), np.full(4, 0.1))
    20.0
    """
    error = float(np.mean((np.asarray(image, float) - np.asarray(other, float)) ** 2))
    return math.inf if error == 0 else round(10 * math.log10(span**2 / error), 9)


def best_psnr(image: Array, found: Array, span: float = 1.0) -> float:
    """The best of some attempts (n, i) at an image (i,); minus infinity if there are none."""
    errors = ((np.asarray(found, float) - image) ** 2).mean(axis=-1)
    return psnr(image, found[int(errors.argmin())], span) if len(errors) else -math.inf
