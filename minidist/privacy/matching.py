"""Gradient matching: search for inputs whose gradient equals the one that was sent.

If division cannot reconstruct the samples (see attack.py), an attacker guesses inputs, computes
their gradient, compares it with the one that was sent, and improves the guess: Zhu, Liu, Han, "Deep
leakage from gradients", arXiv 1906.08935. As in Geiping et al. (arXiv 2003.14053, section 4), the
directions are compared, by 1 - cos, and smooth images are preferred.

Improving a guess needs the derivative of a gradient, but the tape cannot differentiate its own
backward. So the backward of an MLP is written here as a forward, with ops that the tape records:

    forward    a₀ = x,  z_l = a_{l-1} W_l + b_l,  a_l = relu(z_l)
    backward   δ_L = (softmax(z_L) - targets)/n,  δ_{l-1} = (δ_l W_lᵀ) · (z_{l-1} > 0)
    gradients  of W_l: a_{l-1}ᵀ δ_l,  of b_l: the sum of δ_l over the samples
"""

from __future__ import annotations

import numpy as np

from minidist import ops
from minidist.engine.array import Array
from minidist.engine.seeds import generator
from minidist.engine.tensor import Tensor
from minidist.optim import Adam

Layers = list[tuple[Array, Array]]  # (weight (i, o), bias (o,)) of each linear layer


def gradients_of_mlp(x: Tensor, targets: Array, layers: Layers) -> list[Tensor]:
    """The gradients of an MLP's mean cross-entropy for each weight and bias, as functions of ``x``.

    ``x`` (n, i) may require a gradient; ``targets`` (n, classes) are probabilities; the MLP has
    ReLUs.
    """
    inputs, masks = [x], []
    for weight, bias in layers:
        z = ops.linear(inputs[-1], Tensor(weight), Tensor(bias))
        masks.append((z.data > 0).astype(weight.dtype))
        inputs.append(ops.relu(z))
    delta = (ops.softmax(z) - targets) * (1 / len(targets))
    found: list[Tensor] = []
    for k in reversed(range(len(layers))):
        # (i, n) @ (n, o) -> (i, o)
        found[:0] = [ops.matmul(ops.transpose(inputs[k]), delta), ops.sum(delta, axis=0)]
        if k:
            delta = ops.matmul(delta, Tensor(layers[k][0].T)) * masks[k - 1]  # (n, o) @ (o, i)
    return found


def search(
    sent: list[Array],
    targets: Array,
    layers: Layers,
    low: float,
    high: float,
    steps: int = 400,
    smooth: float = 1e-4,
    lr: float = 0.1,
    seed: int = 0,
    shape: tuple[int, int] = (28, 28),
) -> Array:
    """Images (n, h·w) between ``low`` and ``high`` whose gradient has the direction of ``sent``.

    ``sent``: the gradient of each weight and bias, in order. ``targets`` (n, classes): assumed to
    be known to the attacker. ``smooth``: weight of differences between neighbouring pixels.
    """
    n, (h, w) = len(targets), shape
    dtype = sent[0].dtype
    guess = generator(seed, "search").uniform(low, high, (n, h * w)).astype(dtype)
    optimizer = Adam(lr)
    squares = float(np.sqrt(sum((one**2).sum() for one in sent)))
    for step in range(steps):
        optimizer.lr = lr * (1 - step / steps)
        x = Tensor(guess, requires_grad=True)
        along = norm = Tensor(np.zeros((), dtype))
        for got, wanted in zip(gradients_of_mlp(x, targets, layers), sent, strict=True):
            along = along + (got * wanted).sum()
            norm = norm + (got * got).sum()
        loss = 1 - along / (ops.sqrt(norm) * squares)
        image = x.reshape(n, h, w)
        rough = ops.absolute(image[:, 1:] - image[:, :-1]).mean()
        rough = rough + ops.absolute(image[:, :, 1:] - image[:, :, :-1]).mean()
        (loss + smooth * rough).backward()
        assert x.grad is not None
        optimizer.step(guess.reshape(-1), x.grad.reshape(-1))
        np.clip(guess, low, high, out=guess)
    return guess
