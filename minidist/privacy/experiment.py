"""Accuracy against ε: the same training with different noise, and the ε spent so far.

    curves = accuracy_against_epsilon(noises=(0.7, 1.2, 3.0), steps=1200, seeds=3)
    curves[1.2].epsilon, curves[1.2].accuracy       (points,) and (points, seeds)

All runs use one learning rate. Choosing the best one for each noise by looking at private data
would also cost privacy, which the accountant does not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from minidist.comm.comm import Comm
from minidist.comm.launcher import launch
from minidist.comm.local.world import LocalWorld
from minidist.data import fashion_mnist
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import SGD
from minidist.privacy.dp_sgd import DPSGD
from minidist.privacy.sampling import PoissonBatches

RATE, CLIP, LR = 0.0256, 1.0, 0.5  # batches of about 256 of the 10,000 images


@dataclass(frozen=True)
class Curve:
    """Training with one noise: at some steps, the ε so far and the accuracy on the test images."""

    steps: np.ndarray  # (points,)
    epsilon: np.ndarray  # (points,); infinite without noise
    accuracy: np.ndarray  # (points, seeds)


def accuracy_against_epsilon(
    noises: Sequence[float] = (0.7, 1.2, 3.0),
    steps: int = 1200,
    seeds: int = 3,
    points: int = 20,
    delta: float = 1e-5,
) -> dict[float, Curve]:
    """A curve for each noise, of an MLP (784, 64, 10) on the package's Fashion-MNIST."""
    training, test = fashion_mnist()
    marks = np.unique(np.geomspace(min(20, steps), steps, points).round().astype(int))

    def run(comm: Comm, noise: float, seed: int) -> tuple[list[float], list[float]]:
        batches = PoissonBatches(training, RATE, seed)
        method = DPSGD(
            mlp((784, 64, 10)),
            CrossEntropy(),
            SGD(LR),
            comm,
            seed,
            sample_clip=CLIP,
            noise=noise,
            rate=RATE,
            delta=delta,
        )
        epsilon, accuracy = [], []
        for step in range(steps):
            method.step(batches[step])
            if step + 1 in marks:
                epsilon.append(method.epsilon_spent)
                accuracy.append(method.evaluate(test)[1])
        return epsilon, accuracy

    curves = {}
    for noise in noises:
        runs = [
            launch(partial(run, noise=noise, seed=seed), 1, LocalWorld())[0]
            for seed in range(seeds)
        ]
        accuracies = np.array([accuracy for _, accuracy in runs]).T
        curves[noise] = Curve(marks, np.array(runs[0][0]), accuracies)
    return curves
