"""Augmentation: change images a little at random, so that a small dataset gives more variety.

The random numbers are an argument, one row for each sample; ``Batch`` draws them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


@dataclass(frozen=True)
class Augment:
    """Mirror left and right with probability ``flip``; move by up to ``shift`` pixels each way."""

    flip: float = 0.5
    shift: int = 2
    draws = 3  # random numbers in [0, 1) for each image

    def __post_init__(self) -> None:
        if not 0 <= self.flip <= 1 or self.shift < 0:
            raise ValueError(
                f"Augment: flip must be a probability and shift at least 0, not {self.flip} "
                f"and {self.shift}"
            )

    def __call__(self, images: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """New images (n, ..., height, width), from ``draws`` (n, 3); empty edges get 0."""
        flipped = draws[:, 0] < self.flip
        images = np.where(flipped.reshape(-1, *[1] * (images.ndim - 1)), images[..., ::-1], images)
        if not self.shift or not len(images):
            return images
        margin = [(0, 0)] * (images.ndim - 2) + [(self.shift, self.shift)] * 2
        # Every position of the window in the padded image, as a view:
        # (n, ..., 2·shift + 1, 2·shift + 1, height, width).
        places = sliding_window_view(np.pad(images, margin), images.shape[-2:], axis=(-2, -1))
        down, right = (draws[:, 1:] * (2 * self.shift + 1)).astype(int).T
        return places[np.arange(len(images)), ..., down, right, :, :]
