"""Affine quantization: real numbers as small integers, a scale and a zero point.

    r = S · (q - Z)                  q = clamp(round(r / S) + Z)

    real     low ─────────── 0 ────────────────── high
    code    -128 ─────────── Z ──────────────────  127        8 bits

S is the scale, Z the code of 0. Zero must be represented exactly, since padding and ReLUs make many
zeros. Between low and high the error is at most S/2; numbers outside are clamped. Two kinds:

    asymmetric   uses all 2ᵇ codes for [low, high]: for activations, which are often all positive
    symmetric    Z = 0, codes -(2ᵇ⁻¹ - 1) to 2ᵇ⁻¹ - 1: for weights, so that products need no Z

S and Z are arrays that broadcast with r: one number for a whole tensor, or one for each channel.
``bits`` is 2 to 8; codes are int8.

Source: Jacob et al., "Quantization and training of neural networks for efficient
integer-arithmetic-only inference", arXiv 1712.05877, section 2.1, equation 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minidist.engine.array import Array, module_of


@dataclass(frozen=True)
class Grid:
    """The real numbers that codes represent: S · (q - Z), q in [least, most]."""

    scale: Array  # S > 0
    zero: Array  # Z, whole numbers
    least: int
    most: int

    def encode(self, r: Array) -> Array:
        """q = clamp(round(r / S) + Z), as int8; halves are rounded to even."""
        xp = module_of(r)
        return xp.clip(xp.rint(r / self.scale) + self.zero, self.least, self.most).astype("int8")

    def decode(self, q: Array) -> Array:
        """r = S · (q - Z), in the dtype of S."""
        return self.scale * (q.astype(self.scale.dtype) - self.zero)

    def rounded(self, r: Array) -> Array:
        """``r`` after ``encode`` and ``decode``."""
        return self.decode(self.encode(r))

    def inside(self, r: Array) -> Array:
        """Whether each element is in range, so not clamped."""
        q = module_of(r).rint(r / self.scale) + self.zero
        return (self.least <= q) & (q <= self.most)


def asymmetric(low: Any, high: Any, bits: int = 8) -> Grid:
    """The grid of 2ᵇ codes for [low, high], widened to include 0.

    S = (high - low) / (2ᵇ - 1), Z = round(least - low / S). For a range of length 0, S is 1. Raises
    ValueError unless ``bits`` is 2 to 8.
    """
    least, most = -(1 << _checked(bits) - 1), (1 << bits - 1) - 1
    xp = module_of(low)
    low, high = xp.minimum(low, 0), xp.maximum(high, 0)
    scale = (high - low) / (most - least)
    scale = xp.where(scale > 0, scale, 1).astype(low.dtype)
    return Grid(scale, xp.rint(least - low / scale), least, most)


def symmetric(largest: Any, bits: int = 8) -> Grid:
    """The grid for [-largest, largest]: Z = 0, S = largest / (2ᵇ⁻¹ - 1), or 1 if largest is 0."""
    most = (1 << _checked(bits) - 1) - 1
    xp = module_of(largest)
    scale = largest / most
    scale = xp.where(scale > 0, scale, 1).astype(largest.dtype)
    return Grid(scale, xp.zeros_like(scale), -most, most)


def _checked(bits: int) -> int:
    if not 2 <= bits <= 8:
        raise ValueError(f"quantization takes 2 to 8 bits, not {bits}")
    return bits
