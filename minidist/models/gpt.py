"""GPT: a transformer that predicts the next token from all tokens before it.

    tokens (b, l) ── embed + positions ── block ── block ── ... ── norm ── logits (b, l, vocabulary)

    block:   x ← x + attention(norm(x))      each position attends to itself and those before it
             x ← x + mlp(norm(x))            each position is computed separately

The norm comes first in each branch ("pre-norm"), so gradients pass through the sums unchanged.
The embedding is tied (arXiv 1608.05859): the table that maps tokens to vectors also computes the
logits. It is *one* Parameter in the first and the last block. If a pipeline puts these blocks on
different ranks, it finds the name ``"embedding.weight"`` on both, and adds the two gradients.
Radford et al., "Language models are unsupervised multitask learners", 2019.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minidist import nn, ops
from minidist.engine.array import Array, to_host
from minidist.engine.seeds import generator
from minidist.engine.tensor import Tensor
from minidist.nn.evaluating import as_in_evaluation
from minidist.nn.init import normal
from minidist.nn.module import LayerCost, Module, Parameter, Shape, in_a_row

STD = 0.02  # of the initial weights, as in GPT-2


class Embed(Module):
    """A vector for each token plus one for its position: (b, l) integers → (b, l, width)."""

    def __init__(self, weight: Parameter, context: int) -> None:
        self.weight = weight  # (vocabulary, width)
        self.position = Parameter((context, weight.declared[1]), normal(STD))

    def forward(self, tokens: Any, start: int = 0) -> Tensor:
        """``start``: the position of the first token, if earlier tokens are in a cache."""
        tokens = self.weight.xp.asarray(tokens) if isinstance(tokens, list) else tokens
        if len(tokens.shape) != 2:
            raise ops.ShapeError(f"gpt: tokens must be (batch, length), not {tokens.shape}")
        context, last = self.position.declared[0], start + tokens.shape[1]
        if last > context:
            raise ValueError(f"gpt: {last} tokens do not fit into a context of {context}")
        return self.look_up(tokens) + self.position[start:last]

    def look_up(self, tokens: Any) -> Tensor:
        """The vector of each token, without its position: (b, l) integers → (b, l, width)."""
        return ops.embedding(tokens, self.weight)

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        """Saves the tokens, as int64."""
        width, tokens = self.weight.declared[1], int(np.prod(shape))
        return LayerCost(
            (*shape, width),
            saved_bytes=8 * tokens,
            deferred_bytes=tokens * (8 + width * itemsize),
        )

    def __repr__(self) -> str:
        vocabulary, width = self.weight.declared
        return f"Embed(vocabulary={vocabulary}, context={self.position.declared[0]}, width={width})"


class Block(Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): (b, l, width) → the same."""

    def __init__(
        self,
        width: int,
        heads: int,
        layers: int,
        dropout: float = 0.0,
        recompute_attention: bool = False,
    ) -> None:
        start = normal(STD)
        # 2 · layers branches are added to x. Smaller initial weights at their ends keep the sum
        # from growing with the number of layers.
        branch_end = normal(STD / math.sqrt(2 * layers))
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.CausalSelfAttention(
            width,
            heads,
            initialiser=start,
            out_initialiser=branch_end,
            recompute=recompute_attention,
        )
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width, initialiser=start)
        self.gelu = nn.GELU()
        self.down = nn.Linear(4 * width, width, initialiser=branch_end)
        self.dropout1, self.dropout2 = nn.Dropout(dropout), nn.Dropout(dropout)

    def forward(self, x: Tensor, cache: nn.KeyValueCache | None = None) -> Tensor:
        x = x + self.dropout1(self.attention(self.norm1(x), cache))
        return x + self.dropout2(self.down(self.gelu(self.up(self.norm2(x)))))

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        # The sums save nothing, so the cost is that of the two branches.
        branches = (
            (self.norm1, self.attention, self.dropout1),
            (self.norm2, self.up, self.gelu, self.down, self.dropout2),
        )
        return in_a_row([_branch(layers, shape, itemsize) for layers in branches], shape, itemsize)


def _branch(layers: Any, shape: Shape, itemsize: int) -> LayerCost:
    """x + layers(x), as one cost."""
    return nn.Residual(*layers).cost(shape, itemsize)


class Head(Module):
    """Norm, then the logit of every token: (b, l, width) → (b, l, vocabulary)."""

    def __init__(self, weight: Parameter) -> None:
        self.norm = nn.LayerNorm(weight.declared[1])
        self.weight = weight  # (vocabulary, width)

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(self.norm(x), ops.transpose(self.weight))  # (b, l, w) @ (w, v)

    def logits(self, x: Tensor) -> Tensor:
        """The logits of all tokens of the vocabulary, even if it is cut over ranks."""
        return self(x)

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        vocabulary = self.weight.declared[0]
        flops = 2 * int(np.prod(shape)) * vocabulary
        logits = LayerCost(
            (*shape[:-1], vocabulary),
            flops,
            flops,
            flops,
            saves_input=True,
            defers_input=True,
            deferred_bytes=int(np.prod(shape[:-1])) * vocabulary * itemsize,
        )
        return in_a_row((self.norm.cost(shape, itemsize), logits), shape, itemsize)

    def __repr__(self) -> str:
        vocabulary, width = self.weight.declared
        return f"Head(width={width}, vocabulary={vocabulary}, tied)"


def gpt(
    vocabulary: int,
    context: int = 128,
    width: int = 128,
    layers: int = 4,
    heads: int = 4,
    dropout: float = 0.0,
    recompute_attention: bool = False,
) -> nn.Sequential:
    """Embed, ``layers`` blocks, head: a Sequential of layers + 2 blocks.

    About 12 · layers · width² + vocabulary · width parameters. With ``recompute_attention`` no
    attention weights are saved: see ``CausalSelfAttention``.

    >>> len(gpt(63))
    6
    """
    table = Parameter((vocabulary, width), normal(STD), name="embedding.weight")
    blocks = [Block(width, heads, layers, dropout, recompute_attention) for _ in range(layers)]
    return nn.Sequential(Embed(table, context), *blocks, Head(table), input_shape=(context,))


def sample(
    model: nn.Sequential,
    tokens: Any,
    count: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Draw ``count`` tokens that continue ``tokens`` (l,), one at a time; returns the new tokens.

    ``temperature`` divides the logits: below 1, likely tokens become more likely; with 0 the most
    likely token is always taken. ``top_k`` allows only the k most likely. Keys and values of past
    positions are kept in a cache, so a new token needs a forward of one position only. When the
    context is full, the cache is emptied, and the last half of the context is computed again from
    position 0. Raises ValueError for settings out of range and for no tokens, TypeError if the
    tokens are not integers (l,) or the model is not a GPT.
    """
    if not temperature >= 0 or (top_k is not None and top_k < 1):
        raise ValueError(
            f"sample: temperature {temperature} must be at least 0, and top_k {top_k} at least 1"
        )
    if count < 0:
        raise ValueError(
            f"sample: count, the number of new tokens, must be at least 0, not {count}"
        )
    embed, *blocks, head = model.blocks.values()
    if not (isinstance(embed, Embed) and isinstance(head, Head)):
        raise TypeError("sample: the model must be a GPT: Embed, blocks, Head")
    context = embed.position.declared[0]
    if isinstance(tokens, str):
        raise TypeError("sample: tokens are integers: pass dataset.encode(text), and decode after")
    tokens = tokens.data if isinstance(tokens, Tensor) else tokens
    tokens = to_host(tokens) if hasattr(tokens, "dtype") else np.asarray(tokens)
    if tokens.size == 0:
        raise ValueError("sample: pass at least one token to begin with")
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise TypeError(
            f"sample: tokens are integers (length,), of one text, not {tokens.dtype} {tokens.shape}"
        )
    text = tokens.tolist()
    draw = generator(seed, "sample")
    xp, caches = embed.weight.xp, [nn.KeyValueCache() for _ in blocks]
    unread = text[-context:]
    with as_in_evaluation(model):
        for _ in range(count):
            if len(caches[0]) + len(unread) > context:
                caches = [nn.KeyValueCache() for _ in blocks]
                unread = text[-(context // 2 + 1) :]
            x = embed(xp.asarray([unread], np.int64), len(caches[0]))
            for block, cache in zip(blocks, caches, strict=True):
                x = block(x, cache)
            x = x[:, -1:]  # only the last position
            logits = to_host(head.logits(x).data)[0, -1]  # (vocabulary,)
            unread = [pick(logits, temperature, top_k, draw.random())]
            text += unread
    return np.array(text[len(text) - count :], np.int64)


def pick(logits: Array, temperature: float, top_k: int | None, uniform: float) -> int:
    """The token of softmax(logits / temperature) that ``uniform``, a number in [0, 1), selects.

    Raises ArithmeticError if a logit is NaN or +inf, or all are -inf.
    """
    if not np.isfinite(logits.max()):
        raise ArithmeticError(
            f"the largest of {len(logits)} logits is {logits.max()}: are the model's parameters "
            "finite?"
        )
    if temperature == 0:
        return int(logits.argmax())
    below = logits.astype(np.float64) - logits.max()
    if top_k is not None and top_k < len(below):
        below[np.argsort(-below, kind="stable")[top_k:]] = -np.inf
    with np.errstate(over="ignore"):  # a tiny temperature gives -inf, whose exponential is 0
        cumulative = np.exp(below / temperature).cumsum()
    return int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
