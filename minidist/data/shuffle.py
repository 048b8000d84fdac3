"""A shuffled order that is never written down, for datasets with billions of samples.

A list of all n indices in random order takes 8 n bytes: for every window of a token file that is
more than the file itself. A *Feistel network* puts a range in another order by arithmetic alone.
It cuts an index into two halves of k bits and changes each in turn by what the other says:

    (left, right)  →  (right, left ⊕ F(right))        as many rounds as one likes

Whatever F is, nothing is lost: from the new pair the old one can be worked out. So distinct indices
stay distinct, and the range [0, 4ᵏ) is permuted. If n is less than 4ᵏ, an index that lands beyond n
goes through again until it does not: that is a permutation of [0, n) still ("cycle walking": Black,
Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002). As 4ᵏ < 4 n, that takes fewer than
four goes on average.
"""

from __future__ import annotations

import numpy as np

ROUNDS = 6


class Permutation:
    """[0, count) in an order drawn from ``generator``; a slice is that part of the order."""

    def __init__(self, count: int, generator: np.random.Generator) -> None:
        self.count = count
        self.half = np.uint64(max(1, -(-(count - 1).bit_length() // 2)))  # k
        self.mask = np.uint64((1 << int(self.half)) - 1)
        self.keys = generator.integers(0, 1 << 64, ROUNDS, np.uint64)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, places: slice) -> np.ndarray:
        """The indices at these places of the order: int64."""
        index = self._through(np.arange(*places.indices(self.count), dtype=np.uint64))
        while (outside := index >= self.count).any():
            index[outside] = self._through(index[outside])
        return index.astype(np.int64)

    def _through(self, index: np.ndarray) -> np.ndarray:
        """Once through the network."""
        left, right = index >> self.half, index & self.mask
        for key in self.keys:
            left, right = right, left ^ (_mixed(right, key) & self.mask)
        return (left << self.half) | right


def _mixed(x: np.ndarray, key: np.uint64) -> np.ndarray:
    """F: every bit of x and of the key changes about half of the result's (splitmix64)."""
    x = x + key  # around 2⁶⁴, as all of this
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
