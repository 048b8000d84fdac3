"""Accuracy against ε for three noise levels, drawn: docs/images/private.png.

    python -m tests.long.private [picture]

Three seeds each; fails if less noise does not give more accuracy at the end, or any level learns
too little.
"""

from __future__ import annotations

import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from minidist.plots import save
from minidist.plots.private import draw_accuracy_against_epsilon
from minidist.privacy import accuracy_against_epsilon

NOISES = (0.7, 1.2, 3.0)


def main(picture: str = "out/long/private.png") -> None:
    curves = accuracy_against_epsilon(NOISES)
    plain = accuracy_against_epsilon((0.0,), seeds=1, points=2)[0.0].accuracy[-1].mean()
    reached = []
    for noise, curve in curves.items():
        for step, epsilon, accuracy in zip(curve.steps, curve.epsilon, curve.accuracy, strict=True):
            low, high = 100 * accuracy.min(), 100 * accuracy.max()
            print(f"noise {noise}: step {step:4}, ε {epsilon:6.2f}, {low:.1f} to {high:.1f} %")
        reached.append(curve.accuracy[-1].mean())
    print(f"no noise: {plain:.1%}")
    figure, axes = plt.subplots(figsize=(6.5, 4), layout="constrained")
    shown = {noise: (curve.epsilon, curve.accuracy) for noise, curve in curves.items()}
    draw_accuracy_against_epsilon(axes, shown, plain)
    axes.set_title("Fashion-MNIST (10,000 images), MLP, δ = 10⁻⁵, three seeds")
    print("picture:", save(figure, picture))
    assert sorted(reached, reverse=True) == reached and min(reached) > 0.7, reached


if __name__ == "__main__":
    main(*sys.argv[1:])
