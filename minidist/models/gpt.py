"""GPT: a transformer that predicts the next token from all before it.

    tokens (b, l) ── embed + positions ── block ── block ── ... ── norm ── logits (b, l, vocabulary)

    block:   x ← x + attention(norm(x))      what other places say
             x ← x + mlp(norm(x))            what each place makes of it

The norm comes first in each branch ("pre-norm"), so that gradients pass along the sums unhindered.
The table that turns tokens into vectors also scores vectors against tokens: the tied embedding
(arXiv 1608.05859). It is *one* Parameter in the first and the last block. A pipeline that puts
these on different ranks finds the same name, ``"embedding.weight"``, on both, and adds the two
gradients. Radford et al., "Language models are unsupervised multitask learners", 2019.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minidist import nn, ops
from minidist.engine.array import Array, to_host
from minidist.engine.seeds import generator
from minidist.engine.tensor import Tensor, no_grad
from minidist.nn.init import normal
from minidist.nn.module import LayerCost, Module, Parameter, Shape, in_a_row

STD = 0.02  # of the initial weights, as in GPT-2


class Embed(Module):
    """A vector for the token, plus one for the place: (b, l) integers → (b, l, width)."""

    def __init__(self, weight: Parameter, context: int) -> None:
        self.weight = weight  # (vocabulary, width)
        self.position = Parameter((context, weight.declared[1]), normal(STD))

    def forward(self, tokens: Any, start: int = 0) -> Tensor:
        """``start``: the place of the first token, when earlier ones are in a cache."""
        tokens = self.weight.xp.asarray(tokens) if isinstance(tokens, list) else tokens
        if len(tokens.shape) != 2:
            raise ops.ShapeError(f"gpt: tokens must be (batch, length), not {tokens.shape}")
        context, last = self.position.declared[0], start + tokens.shape[1]
        if last > context:
            raise ValueError(f"gpt: {last} tokens do not fit into a context of {context}")
        return ops.embedding(tokens, self.weight) + self.position[start:last]

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        """Keeps the tokens, as int64."""
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

    def __init__(self, width: int, heads: int, layers: int, dropout: float = 0.0) -> None:
        start = normal(STD)
        # 2 · layers branches add to x: each starts smaller, so that the sum does not grow.
        branch_end = normal(STD / math.sqrt(2 * layers))
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.CausalSelfAttention(
            width, heads, initialiser=start, out_initialiser=branch_end
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
        # The sums keep nothing: the two branches, one after the other, are all there is.
        branches = (
            (self.norm1, self.attention, self.dropout1),
            (self.norm2, self.up, self.gelu, self.down, self.dropout2),
        )
        return in_a_row([_branch(layers, shape, itemsize) for layers in branches], shape, itemsize)


def _branch(layers: Any, shape: Shape, itemsize: int) -> LayerCost:
    """x + layers(x), as one cost."""
    return nn.Residual(*layers).cost(shape, itemsize)


class Head(Module):
    """Norm, then the score of every token: (b, l, width) → (b, l, vocabulary)."""

    def __init__(self, weight: Parameter) -> None:
        self.norm = nn.LayerNorm(weight.declared[1])
        self.weight = weight  # (vocabulary, width)

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(self.norm(x), ops.transpose(self.weight))  # (b, l, w) @ (w, v)

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
) -> nn.Sequential:
    """Embed, ``layers`` blocks, head: a Sequential of layers + 2 blocks.

    About 12 · layers · width² + vocabulary · width parameters.

    >>> len(gpt(63))
    6
    """
    table = Parameter((vocabulary, width), normal(STD), name="embedding.weight")
    blocks = [Block(width, heads, layers, dropout) for _ in range(layers)]
    return nn.Sequential(Embed(table, context), *blocks, Head(table), input_shape=(context,))


def sample(
    model: nn.Sequential,
    tokens: Any,
    count: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
) -> np.ndarray:
    """``count`` tokens to follow ``tokens`` (l,), drawn one at a time; returns the new ones.

    ``temperature`` divides the logits: below 1 the likely become likelier, 0 always takes the
    likeliest. ``top_k`` allows only the k likeliest. Keys and values of past places are kept in a
    cache, so a new token costs one place, not all of them again. When the context is full, its
    later half is read again from place 0.
    """
    if temperature < 0 or (top_k is not None and top_k < 1):
        raise ValueError(f"sample: temperature {temperature} or top_k {top_k} is too small")
    embed, *blocks, head = model.blocks.values()
    assert isinstance(embed, Embed)
    context = embed.position.declared[0]
    if isinstance(tokens, str):
        raise TypeError("sample: tokens are integers: pass dataset.encode(text), and decode after")
    text = [int(token) for token in tokens]
    if not text:
        raise ValueError("sample: give at least one token to begin with")
    draw = generator(seed, "sample")
    xp, caches = embed.weight.xp, [nn.KeyValueCache() for _ in blocks]
    unread = text[-context:]
    training, _ = model.training, model.eval()
    with no_grad():
        for _ in range(count):
            if len(caches[0]) + len(unread) > context:
                caches = [nn.KeyValueCache() for _ in blocks]
                unread = text[-(context // 2 + 1) :]
            x = embed(xp.asarray([unread], np.int64), len(caches[0]))
            for block, cache in zip(blocks, caches, strict=True):
                x = block(x, cache)
            logits = to_host(head(x[:, -1:]).data)[0, -1]  # of the last place: (vocabulary,)
            unread = [pick(logits, temperature, top_k, draw.random())]
            text += unread
    model.train(training)
    return np.array(text[len(text) - count :], np.int64)


def pick(logits: Array, temperature: float, top_k: int | None, uniform: float) -> int:
    """The token that a number in [0, 1) selects from softmax(logits / temperature)."""
    if temperature == 0:
        return int(logits.argmax())
    scaled = logits.astype(np.float64) / temperature
    if top_k is not None and top_k < len(scaled):
        scaled[np.argsort(-scaled, kind="stable")[top_k:]] = -np.inf
    cumulative = np.exp(scaled - scaled.max()).cumsum()
    return int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
