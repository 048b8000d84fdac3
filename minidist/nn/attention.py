"""Causal self-attention as a layer, with grouped queries, rotary positions and a cache."""

from __future__ import annotations

from typing import Any

import numpy as np

from minidist import ops
from minidist.engine.array import Array
from minidist.engine.recompute import checkpoint
from minidist.engine.tensor import Tensor
from minidist.nn.layers import Linear
from minidist.nn.module import Initialiser, LayerCost, Module, Shape, in_a_row
from minidist.ops.blockwise_attention import attention_blocks


class KeyValueCache:
    """Keys and values of the positions so far, for sampling one token after another.

    ``keys`` and ``values``: (batch, groups, positions, d). ``extend`` adds positions.
    """

    def __init__(self) -> None:
        self.keys: Array = None
        self.values: Array = None

    def __len__(self) -> int:
        return 0 if self.keys is None else self.keys.shape[2]

    def extend(self, xp: Any, keys: Array, values: Array) -> None:
        """Add positions at the end."""
        if self.keys is None:
            self.keys, self.values = keys, values
        else:
            self.keys = xp.concatenate((self.keys, keys), axis=2)
            self.values = xp.concatenate((self.values, values), axis=2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Any = None) -> Tensor:
        """Add k and v (b, g, l, d), and let the queries (b, h, l, d) attend to all positions."""
        self.extend(q.xp, k.data, v.data)
        return ops.attention(q, Tensor(self.keys), Tensor(self.values), mask=mask)


class CausalSelfAttention(Module):
    """Each position attends to itself and those before: (batch, length, width) → the same.

    There are ``heads`` query heads of width/heads features, and ``groups`` heads of keys and values
    (by default ``heads``; 1 is multi-query attention). With ``rotary``, queries and keys are
    rotated by an angle proportional to their position, so that the input needs no position
    embedding. One product computes queries, keys and values, side by side in that order; another
    combines the results of the heads.

    With ``recompute`` the attention weights, whose number grows with the square of the length, are
    not saved but computed again in the backward; everything else is saved ("selective
    recomputation", arXiv 2205.05198, section 5).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        groups: int | None = None,
        rotary: bool = False,
        bias: bool = True,
        initialiser: Initialiser | None = None,
        out_initialiser: Initialiser | None = None,
        recompute: bool = False,
    ) -> None:
        groups = groups or heads
        if width % heads or heads % groups:
            raise ValueError(
                f"CausalSelfAttention: {heads} heads must divide the width {width}, and {groups} "
                f"groups the heads"
            )
        self.width, self.heads, self.groups = width, heads, groups
        self.rotary_base = 10000.0 if rotary else None
        self.recompute = recompute
        packed = (heads + 2 * groups) * (width // heads)
        self.qkv = Linear(width, packed, bias, initialiser)
        self.out = Linear(width, width, bias, out_initialiser or initialiser)

    def forward(self, x: Tensor, cache: KeyValueCache | None = None, mask: Any = None) -> Tensor:
        """``mask`` broadcasts to (batch, heads, length, keys): see ``ops.attention``.

        To mask padding, pass booleans (batch, 1, 1, keys), true for the keys that may be used.
        """
        qkv = self.project(x)
        mixed = self.core(qkv, mask) if cache is None else self.with_cache(qkv, cache, mask)
        return self.out(mixed)

    def project(self, x: Tensor) -> Tensor:
        """Queries, keys and values side by side: (b, l, (heads + 2 groups) · d)."""
        return self.qkv(x)

    def core(self, qkv: Tensor, mask: Any = None) -> Tensor:
        """Attention, between the two products: (b, l, (heads + 2 groups) · d) → (b, l, width)."""
        settings = self.heads, self.groups, self.rotary_base, mask
        if self.recompute and qkv.requires_grad:
            return checkpoint(lambda x: ops.self_attention(x, *settings), qkv, random=False)
        return ops.self_attention(qkv, *settings)

    def with_cache(self, qkv: Tensor, cache: KeyValueCache, mask: Any) -> Tensor:
        """As ``core``, for positions after those in the cache, to which they are added."""
        batch, length, _ = qkv.shape
        parts = qkv.reshape(batch, length, self.heads + 2 * self.groups, -1)
        parts = parts.transpose(0, 2, 1, 3)  # (b, h + 2g, l, d)
        q, k, v = ops.split(parts, (self.heads, self.groups, self.groups), axis=1)
        if self.rotary_base is not None:
            q = ops.rotary(q, self.rotary_base, len(cache))
            k = ops.rotary(k, self.rotary_base, len(cache))
        out = cache.attend(q, k, v, mask)  # (b, h, l, d)
        merged = out.transpose(0, 2, 1, 3)  # (b, l, h, d)
        return merged.reshape(batch, length, merged.shape[2] * merged.shape[3])

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        first = self.qkv.cost(shape, itemsize)
        core = self.core_cost(first.shape, itemsize)
        return in_a_row((first, core, self.out.cost(core.shape, itemsize)), shape, itemsize)

    def core_cost(self, shape: Shape, itemsize: int) -> LayerCost:
        """The cost of ``core``: of those blocks of attention weights that are computed."""
        batch, length, packed = shape
        width = packed * self.heads // (self.heads + 2 * self.groups)
        pairs = sum(
            (rows.stop - rows.start) * seen for rows, seen in attention_blocks(length, length)
        )
        flops = 4 * batch * width * pairs
        weights = batch * self.heads * pairs * itemsize
        out = batch, length, width
        qkv_bytes = int(np.prod(shape)) * itemsize
        if self.recompute:  # saves the input alone, and runs the forward again
            again = weights + (qkv_bytes if self.rotary_base is not None else 0)
            return LayerCost(
                out,
                flops,
                3 * flops,
                saves_input=True,
                splitting_bytes=again,
                backward_bytes=again,
            )
        if self.rotary_base is not None:  # saves the rotated copy instead of the input
            return LayerCost(out, flops, 2 * flops, saved_bytes=weights + qkv_bytes)
        return LayerCost(out, flops, 2 * flops, saves_input=True, saved_bytes=weights)

    def __repr__(self) -> str:
        groups = f", groups={self.groups}" if self.groups != self.heads else ""
        rotary = ", rotary" if self.rotary_base else ""
        width = self.out.cost((1, 1, 1)).shape[-1]
        return f"CausalSelfAttention({width}, heads={self.heads}{groups}{rotary})"
