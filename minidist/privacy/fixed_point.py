"""Fixed point: real numbers as integers modulo 2ᵏ, whose sum is exact.

    value in [-r, r]  →  round(value / r · L),  L = 2ᵇ⁻¹ - 1 levels  →  modulo 2ᵏ

r is ``limit``; larger values are clipped. b is ``bits``, k is ``modulus_bits``. An integer sum is
exact and does not depend on the order of its terms; only the rounding before has an error, of at
most r/(2L) for each value. Negative numbers are the upper half of [0, 2ᵏ), as in two's complement.
So the sum of m values is correct if m·L ≤ 2ᵏ⁻¹ - 1. More clients are refused, because their sum
could silently get the wrong sign.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class FixedPoint:
    """Values in [-``limit``, ``limit``] in steps of ``limit``/(2^(``bits``-1) - 1).

    >>> fixed = FixedPoint(limit=1.0, bits=8)
    >>> fixed.decode(fixed.encode(np.array([0.5])) + fixed.encode(np.array([-0.25])))
    array([0.2519685])
    """

    limit: float = 1.0
    bits: int = 24
    modulus_bits: int = 32

    def __post_init__(self) -> None:
        if not (self.limit > 0 and np.isfinite(self.limit)):
            raise ValueError(f"fixed point: the limit must be positive, not {self.limit}")
        if not 2 <= self.bits <= self.modulus_bits <= 32:
            raise ValueError(
                f"fixed point: 2 <= bits <= modulus_bits <= 32, not bits={self.bits} and "
                f"modulus_bits={self.modulus_bits}"
            )

    @property
    def levels(self) -> int:
        """L: the integer that represents the limit."""
        return 2 ** (self.bits - 1) - 1

    @property
    def most(self) -> int:
        """The number of values that can be summed without overflow."""
        return (2 ** (self.modulus_bits - 1) - 1) // self.levels

    @property
    def mask(self) -> np.uint32:
        """2ᵏ - 1."""
        return np.uint32(2**self.modulus_bits - 1)

    def check(self, count: int) -> None:
        """Raise ValueError if the sum of ``count`` values may overflow."""
        if count > self.most:
            raise ValueError(
                f"fixed point: the sum of {count} values of {self.bits} bits may overflow 2^"
                f"{self.modulus_bits}: at most {self.most} clients, or fewer bits"
            )

    def beyond(self, values: np.ndarray) -> int:
        """The number of values that exceed the limit and will be clipped."""
        return int(np.count_nonzero(np.abs(values) > self.limit))

    def encode(self, values: np.ndarray) -> np.ndarray:
        """The integers, uint32 below 2ᵏ. Raises ValueError for NaN and infinity."""
        if not np.isfinite(values).all():
            raise ValueError("fixed point: a value is not finite, so no integer represents it")
        scaled = np.clip(np.asarray(values, np.float64) / self.limit, -1, 1) * self.levels
        return np.rint(scaled).astype(np.int64).astype(np.uint32) & self.mask

    def decode(self, total: np.ndarray) -> np.ndarray:
        """The sum, float64, from a sum of encoded values modulo 2ᵏ."""
        signed = (total & self.mask).astype(np.int64)
        signed[signed >= 2 ** (self.modulus_bits - 1)] -= 2**self.modulus_bits
        return signed * (self.limit / self.levels)
