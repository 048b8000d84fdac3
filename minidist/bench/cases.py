"""What ``minidist bench engine`` times: whole training steps, the same in every library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from minidist import models, nn


@dataclass(frozen=True)
class Case:
    """A model with inputs and targets.

    ``kind`` and ``arguments`` are for the other libraries, which build the same model: "mlp" with
    its widths, "cnn" with its channels, "gpt" with vocabulary, context, width, layers and heads.
    ``rule`` is "adam" or "sgd"; ``microbatches``: parts of a batch, whose gradients add up.
    """

    name: str
    model: nn.Module
    inputs: np.ndarray
    targets: np.ndarray
    kind: str
    arguments: tuple[Any, ...]
    rule: str = "adam"
    microbatches: int = 1

    def parts(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """(inputs, targets) of each microbatch."""
        inputs = np.array_split(self.inputs, self.microbatches)
        return list(zip(inputs, np.array_split(self.targets, self.microbatches), strict=True))


def cases() -> list[Case]:
    """The cases, from small to large for each kind of model."""
    generator = np.random.default_rng(0)

    def images(n: int, *shape: int) -> tuple[np.ndarray, np.ndarray]:
        return generator.standard_normal((n, *shape), np.float32), generator.integers(0, 10, n)

    found = []
    for batch, hidden in ((32, 128), (128, 512), (512, 1024)):
        widths = (784, hidden, hidden, 10)
        name = f"MLP {batch}×" + "-".join(map(str, widths))
        found.append(Case(name, models.mlp(widths), *images(batch, 784), "mlp", (widths,)))
    found.append(Case("CNN 64×28×28, 16-32", models.cnn(16), *images(64, 28, 28), "cnn", (16,)))
    for batch, length, width in ((8, 64, 128), (8, 128, 256), (4, 256, 512)):
        heads = 4 if width == 128 else 8
        tokens = generator.integers(0, 96, (2, batch, length))
        shape = (96, length, width, 4, heads)
        name = f"GPT {batch}×{length}×{width}×4"
        found.append(Case(name, models.gpt(*shape), tokens[0], tokens[1], "gpt", shape))
    small = (784, 128, 127, 126, 125, 124, 123, 10)  # so that what Python costs is seen
    found.append(
        Case(
            "MLP 4×32×784-128…10, SGD",
            models.mlp(small),
            *images(128, 784),
            "mlp",
            (small,),
            "sgd",
            4,
        )
    )
    return found
