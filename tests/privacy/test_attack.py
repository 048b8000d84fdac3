"""The attacks recover images from gradients, and the noise of the lesson stops them."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from minidist import LocalWorld, launch
from minidist.data import fashion_mnist
from minidist.engine.array import defaults
from minidist.engine.tensor import Tensor
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import SGD
from minidist.parallel import Serial
from minidist.privacy import DPSGD, best_psnr, invert_each, invert_linear, psnr
from minidist.privacy.matching import gradients_of_mlp, search

SPAN = 1 / 0.353  # from white to black


@cache
def data():
    return fashion_mnist()[0]


def images(count):
    return [data().batch([k]).inputs.reshape(-1) for k in range(count)]


def sent(indices, make=Serial, model=mlp, **options):
    """What a step of plain SGD changes."""

    def run(comm):
        method = make(model(), CrossEntropy(), SGD(1.0), comm, 0, **options)
        before = method.parameters()
        method.step(data().batch(indices))
        return {name: before[name] - after for name, after in method.parameters().items()}

    return launch(run, 1, LocalWorld())[0]


@cache
def directions():
    """A thousand training images, without their mean, of length 1."""
    every = data().batch(np.arange(1000)).inputs.reshape(1000, -1)
    every = every - every.mean(axis=1, keepdims=True)
    return every / np.linalg.norm(every, axis=1, keepdims=True)


def nearest(guess):
    """The number of the training image that is most like ``guess``, by correlation."""
    return int((directions() @ (guess - guess.mean())).argmax())


def test_a_division_recovers_ten_of_ten_images():
    for k, image in enumerate(images(10)):
        gradient = sent([k])
        found = invert_linear(gradient["1.weight"], gradient["1.bias"])
        assert psnr(image, found, SPAN) > 100
        assert nearest(found) == k


def test_with_the_noise_of_the_lesson_it_recovers_none():
    """No better than a square of one grey; and clipping alone would not help."""
    for k, image in enumerate(images(10)):
        gradient = sent([k], DPSGD, noise=1.2)
        found = invert_linear(gradient["1.weight"], gradient["1.bias"])
        attempts = [found, *invert_each(gradient["1.weight"], gradient["1.bias"])]
        best = best_psnr(image, attempts, SPAN)
        assert best < psnr(image, np.full(784, image.mean()), SPAN)
        assert nearest(found) != k
    clipped = sent([0], DPSGD, noise=0.0, sample_clip=0.1)
    found = invert_linear(clipped["1.weight"], clipped["1.bias"])
    assert psnr(images(1)[0], found, SPAN) > 100


def test_the_larger_the_batch_the_fewer_images_a_division_recovers():
    shares = []
    for size in (4, 16, 64, 256):
        gradient = sent(np.arange(size))
        attempts = invert_each(gradient["1.weight"], gradient["1.bias"])
        shares.append(np.mean([best_psnr(one, attempts, SPAN) > 20 for one in images(size)]))
    assert shares[0] == 1 and 0.3 < shares[1] < 0.8 and shares[2] < 0.1 and shares[3] == 0


def small():
    return mlp((784, 64, 32, 10))


def layers():
    state = small().init(0).state()
    return [(state[f"{k}.weight"], state[f"{k}.bias"]) for k in (1, 3, 5)]


def targets(count):
    return np.eye(10, dtype=np.float32)[data().batch(np.arange(count)).targets]


def test_the_backward_written_out_is_the_tapes():
    with defaults(dtype="float64"):
        batch = data().batch(np.arange(5))
        model = small().init(0)
        CrossEntropy()(model(batch.inputs), batch.targets).backward()
        x = Tensor(batch.inputs.reshape(5, -1))
        state = model.state()
        found = gradients_of_mlp(
            x,
            np.eye(10)[batch.targets],
            [(state[f"{k}.weight"], state[f"{k}.bias"]) for k in (1, 3, 5)],
        )
        for one, parameter in zip(found, model.parameters(), strict=True):
            np.testing.assert_allclose(one.data, parameter.grad, rtol=1e-10, atol=1e-14)


@pytest.mark.slow
def test_a_search_finds_images_of_a_batch_and_none_behind_noise():
    low, high = -0.81, 2.03
    plain = list(sent(np.arange(4), model=small).values())
    found = search(plain, targets(4), layers(), low, high, steps=300)
    assert sum(best_psnr(one, found, SPAN) > 20 for one in images(4)) >= 3
    noisy = list(sent(np.arange(4), DPSGD, model=small, noise=1.2).values())
    found = search(noisy, targets(4), layers(), low, high, steps=100)
    assert max(best_psnr(one, found, SPAN) for one in images(4)) < 12


def test_a_gradient_that_says_nothing_is_refused():
    with pytest.raises(ValueError, match="the gradient of the bias is 0"):
        invert_linear(np.zeros((3, 2)), np.zeros(2))
    assert invert_each(np.ones((3, 2)), np.array([0.0, 2.0])).shape == (1, 3)
