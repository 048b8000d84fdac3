"""What a GPU is told of a key are two words of 64 bits that make the key again."""

from __future__ import annotations

import numpy as np

from minidist.engine import seeds


def test_both_halves_of_a_key_are_64_signed_bits(monkeypatch):
    told = []
    monkeypatch.setattr(seeds, "_draw_mask", lambda *arguments: told.append(arguments))
    keys = [2**128 - 1, 2**127, 2**64 + 2**63, 2**63 - 1, 5]
    for key in keys:
        drawn = (key, np.arange(3, 5))
        monkeypatch.setattr(seeds, "_drawn_for", lambda name, rows, drawn=drawn: drawn)
        seeds.draw_mask(np, "mask", 2, 4, 0.5)
    for key, (_, mask, positions, first, low, high, least, width) in zip(keys, told, strict=True):
        assert -(2**63) <= low < 2**63 and -(2**63) <= high < 2**63
        assert low % 2**64 + (high % 2**64 << 64) == key
        assert (mask.shape, positions, first, least, width) == ((2, 4), None, 3, 2**31, 4)
