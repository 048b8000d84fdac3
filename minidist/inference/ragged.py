"""One forward for sequences of different lengths, without padding in the products.

    rows      A₀ A₁ A₂ A₃ │ B₀ B₁ │ C₇ │ D₂      two new prompts; C and D continue by one token
              ╰─────────── one product ──────╯   norms, linear layers: each row separately
    attention A with A    │ B with B │ C, D: each with its own cached positions

Linear layers and norms treat each row separately, so all tokens of all sequences go through them in
one product. Only attention depends on the sequence of a row. A new prompt attends to itself.
Sequences that continue are computed together: their cached positions are read from the blocks into
one array, as long as the longest sequence, and positions after a sequence's end are masked.

Source: Yu et al., "Orca: a distributed serving system for transformer-based generative models",
OSDI 2022, section 3.2 ("selective batching").
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minidist import ops
from minidist.engine.array import Array, work
from minidist.engine.tensor import Tensor
from minidist.inference.blocks import BlockPool
from minidist.models.gpt import Embed, Head
from minidist.nn.attention import KeyValueCache
from minidist.nn.layers import Sequential
from minidist.nn.module import Module
from minidist.ops.softmax import softmax_array


@dataclass
class Part:
    """The new tokens of one sequence; ``start`` positions are in the cache, in blocks ``table``."""

    tokens: Sequence[int]
    start: int
    table: list[int]


class Step:
    """The order of rows in one forward: prompts first, then sequences that continue by a token."""

    def __init__(self, parts: Sequence[Part], pool: BlockPool, xp: Any) -> None:
        prompts = [part for part in parts if part.start == 0]
        further = [part for part in parts if part.start]
        if any(len(part.tokens) != 1 for part in further):
            raise ValueError("Step: a sequence that is in the cache continues by exactly one token")
        work.sequences(len(parts))
        self.order = [*prompts, *further]
        self.pool = pool
        lengths = [len(part.tokens) for part in self.order]
        self.ends = np.cumsum(lengths)  # of each sequence's rows
        self.tokens = np.concatenate([np.asarray(part.tokens, np.int64) for part in self.order])
        here = [np.arange(part.start, part.start + len(part.tokens)) for part in self.order]
        self.positions = np.concatenate(here)
        rows = [pool.rows(part.table, at) for part, at in zip(self.order, here, strict=True)]
        self.rows = xp.asarray(np.concatenate(rows))
        stops = self.ends[: len(prompts)].tolist()
        starts = [0, *stops[:-1]]
        self.prompts = [slice(a, b) for a, b in zip(starts, stops, strict=bool(stops))]
        self.further = slice(stops[-1] if stops else 0, int(self.ends[-1]))
        if further:
            seen = np.array([part.start + 1 for part in further])  # (b,)
            every = np.zeros((len(further), int(seen.max())), np.int64)
            for row, part in zip(every, further, strict=True):
                row[: part.start + 1] = pool.rows(part.table, np.arange(part.start + 1))
            self.cached = xp.asarray(every)  # (b, longest): rows of the pool
            self.beyond = xp.asarray(np.arange(every.shape[1]) >= seen[:, None])[:, None, None]


class LayerCache(KeyValueCache):
    """The cache of one attention layer in one step: reads and writes the block pool."""

    def __init__(self, step: Step, layer: int) -> None:
        super().__init__()
        self.step, self.layer = step, layer

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Any = None) -> Tensor:
        """q (1, h, n, d), k and v (1, g, n, d): n rows of several sequences → (1, h, n, d)."""
        if mask is not None:
            raise ValueError("rows of several sequences take no mask: each sequence has its own")
        step, pool, xp = self.step, self.step.pool, q.xp
        rows_first = [part.data[0].transpose(1, 0, 2) for part in (k, v)]  # (n, g, d)
        pool.write(self.layer, step.rows, *rows_first)
        out = xp.empty(q.shape, q.dtype)
        for rows in step.prompts:
            own_q, own_k, own_v = (Tensor(part.data[:, :, rows]) for part in (q, k, v))
            out[:, :, rows] = ops.attention(own_q, own_k, own_v).data
        if step.further.start < step.further.stop:
            self._continue(xp, q.data[0, :, step.further], out[0, :, step.further])
        return Tensor(out)

    def _continue(self, xp: Any, q: Array, out: Array) -> None:
        """Attention of one query of each sequence to its cached positions: q and out (h, b, d)."""
        keys = self.step.pool.keys[self.layer, self.step.cached]  # (b, l, g, d)
        values = self.step.pool.values[self.layer, self.step.cached]
        batch, _, groups, d = keys.shape
        grouped = q.transpose(1, 0, 2).reshape(batch, groups, -1, d)  # (b, g, h / g, d)
        scores = grouped @ keys.transpose(0, 2, 3, 1)  # (.., h / g, d) @ (.., d, l) -> (.., l)
        scores *= d**-0.5
        scores[xp.broadcast_to(self.step.beyond, scores.shape)] = -np.inf
        p = softmax_array(xp, scores)
        mixed = p @ values.transpose(0, 2, 1, 3)  # (.., h / g, l) @ (.., l, d) -> (.., d)
        out[...] = mixed.reshape(batch, -1, d).transpose(1, 0, 2)


def through(blocks: Iterable[Module], step: Step, x: Tensor | None = None) -> Tensor:
    """Compute consecutive blocks of a GPT for the rows of a step; keys and values go into the pool.

    ``x``: (1, rows, width), or None if the first block is the embedding. Returns the output of the
    last block, (1, rows, width); after the head, the logits of the last token of each sequence,
    (1, parts, vocabulary).
    """
    layer = 0
    for block in blocks:
        if isinstance(block, Embed):
            xp = block.weight.xp
            tokens, positions = xp.asarray(step.tokens[None]), xp.asarray(step.positions[None])
            x = block.look_up(tokens) + ops.embedding(positions, block.position)  # (1, n, w)
        elif isinstance(block, Head):
            assert x is not None
            x = block.logits(Tensor(x.data[:, x.xp.asarray(step.ends - 1)]))  # of (1, parts, w)
        else:
            x = block(x, LayerCache(step, layer))
            layer += 1
    assert x is not None
    return x


def forward(model: Sequential, parts: Sequence[Part], pool: BlockPool) -> tuple[list[Part], Array]:
    """One forward of all parts; keys and values go into the pool.

    Returns the parts in the order of their rows, and the logits of the last token of each:
    (parts, vocabulary).
    """
    step = Step(parts, pool, pool.xp)
    return step.order, through(model.blocks.values(), step).data[0]
