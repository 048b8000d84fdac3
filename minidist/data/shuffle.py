"""A random permutation that is computed and never stored, for datasets with billions of samples.

A list of all n indices in random order takes 8 n bytes. With one index for every window of a token
file, that is more than the file itself. A *Feistel network* permutes a range by arithmetic alone.
It cuts an index into two halves of k bits, and changes each in turn by a function of the other:

    (left, right)  →  (right, left ⊕ F(right))        repeated for several rounds

For any F, each round can be undone: the old pair can be computed from the new one. So distinct
indices stay distinct, and the range [0, 4ᵏ) is permuted. If n is less than 4ᵏ, an index may become
n or larger; it then goes through the network again until it is less than n. The result is still a
permutation of [0, n) ("cycle walking": Black, Rogaway, "Ciphers with arbitrary finite domains",
CT-RSA 2002). Because 4ᵏ < 4 n, this takes fewer than four passes on average.
"""

from __future__ import annotations

import numpy as np

ROUNDS = 6


class Permutation:
    """A permutation of [0, count), made by ``generator``; ``permutation[a:b]`` computes a part."""

    def __init__(self, count: int, generator: np.random.Generator) -> None:
        self.count = count
        self.half = np.uint64(max(1, -(-(count - 1).bit_length() // 2)))  # k
        self.mask = np.uint64((1 << int(self.half)) - 1)
        self.keys = generator.integers(0, 1 << 64, ROUNDS, np.uint64)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, places: slice) -> np.ndarray:
        """The indices at these positions of the order: int64."""
        index = self._through(np.arange(*places.indices(self.count), dtype=np.uint64))
        while (outside := index >= self.count).any():
            index[outside] = self._through(index[outside])
        return index.astype(np.int64)

    def _through(self, index: np.ndarray) -> np.ndarray:
        """One pass through the network."""
        left, right = index >> self.half, index & self.mask
        for key in self.keys:
            left, right = right, left ^ (_mixed(right, key) & self.mask)
        return (left << self.half) | right


def _mixed(x: np.ndarray, key: np.uint64) -> np.ndarray:
    """F: each bit of x or key changes about half of the bits of the result (splitmix64)."""
    x = x + key  # modulo 2⁶⁴, like all arithmetic here
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
