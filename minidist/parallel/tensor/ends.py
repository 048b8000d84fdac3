"""The embedding, logits and loss of a language model whose vocabulary is cut over ranks.

    tokens ──▶ CutEmbed ──▶ blocks ──▶ CutHead ──▶ VocabularyCrossEntropy ──▶ loss
               own rows, Σ             own logits   three numbers a position, Σ

The embedding and the logits use one table: rank r has the rows of its tokens. The ops are in
vocabulary.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minidist import nn, ops
from minidist.engine.array import Array
from minidist.engine.tensor import Tensor
from minidist.models.gpt import Embed, Head
from minidist.nn.module import LayerCost, Shape, in_a_row
from minidist.ops import collectives as messages
from minidist.parallel.tensor.axis import Axis, Sum, Traffic
from minidist.parallel.tensor.cut import Cut
from minidist.parallel.tensor.layers import SEQUENCE, columns, columns_cost, columns_traffic
from minidist.parallel.tensor.vocabulary import (
    predictions,
    vocabulary_cross_entropy,
    vocabulary_embedding,
)


class CutEmbed(Embed):
    """Embedding from this rank's rows of the table: (b, l) integers → (b, l, width).

    Under sequence parallelism the result is this rank's positions, (b, l/t, width).
    """

    def __init__(self, embed: Embed, axis: Axis, cut: Cut) -> None:
        self.weight, self.position, self.axis = embed.weight, embed.position, axis
        self.first, self.rows = cut.ranges[axis.rank][0][0], cut.ranges[-1][0][1]

    def summand(self, tokens: Any) -> Tensor:
        """The vectors of this rank's tokens; 0 for tokens of other ranks."""
        return vocabulary_embedding(tokens, self.weight, self.first, self.rows)

    def look_up(self, tokens: Any) -> Tensor:
        return messages.reduce_from(self.summand(tokens), self.axis.group)

    def forward(self, tokens: Any, start: int = 0) -> Tensor:
        if not self.axis.sequence:
            return super().forward(tokens, start)
        tokens = self.weight.xp.asarray(tokens)
        if len(tokens.shape) != 2:
            raise ops.ShapeError(f"gpt: tokens must be (batch, length), not {tokens.shape}")
        context, last = self.position.declared[0], start + tokens.shape[1]
        if last > context:
            raise ValueError(f"gpt: {last} tokens do not fit into a context of {context}")
        mine = self.axis.part_of_sequence(tokens.shape[1])
        x = messages.reduce_scatter(self.summand(tokens), self.axis.group, SEQUENCE)
        return x + self.position[start + mine.start : start + mine.stop]

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        """Saves the tokens, as int64."""
        width, tokens = self.weight.declared[1], int(np.prod(shape))
        if not self.weight.requires_grad:
            return LayerCost(self.axis.own((*shape, width)))
        return LayerCost(
            self.axis.own((*shape, width)),
            saved_bytes=8 * tokens,
            deferred_bytes=tokens * (8 + width * itemsize),
        )

    def traffic(self, shape: Shape, itemsize: int, input_grad: bool = True) -> Traffic:
        n, axis = int(np.prod(shape)) * self.weight.declared[1], self.axis
        if not axis.sequence:
            return Traffic([Sum("all_reduce", n, itemsize, axis.size)])
        return Traffic(
            [Sum("reduce_scatter", n, itemsize, axis.size)],
            [Sum("all_gather", n, itemsize, axis.size)],
        )


class CutHead(Head):
    """Norm, then the logits of this rank's tokens: (b, l, width) → (b, l, own tokens)."""

    def __init__(self, head: Head, axis: Axis, cut: Cut) -> None:
        self.norm, self.weight, self.axis, self.cut = head.norm, head.weight, axis, cut

    def forward(self, x: Tensor) -> Tensor:
        return columns(self.norm(x), ops.transpose(self.weight), None, self.axis)

    def logits(self, x: Tensor) -> Tensor:
        """The logits of all ranks' tokens, the same bits on every rank, by an all-gather."""
        lengths = [self.cut.length(rank) for rank in range(self.axis.size)]
        return messages.gather(self(x), self.axis.group, -1, lengths)

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        trained = self.weight.requires_grad
        logits = columns_cost(shape, self.weight.declared[0], self.axis, itemsize, trained, trained)
        return in_a_row((self.norm.cost(shape, itemsize), logits), shape, itemsize)

    def traffic(self, shape: Shape, itemsize: int, input_grad: bool = True) -> Traffic:
        return columns_traffic(shape, self.axis, itemsize, True)


class VocabularyCrossEntropy(nn.CrossEntropy):
    """Cross-entropy of logits whose classes are cut over ranks: the same value on every rank."""

    def __init__(self, loss: nn.CrossEntropy, axis: Axis, cut: Cut) -> None:
        vars(self).update(vars(loss))
        self.axis = axis
        self.first, self.classes = cut.ranges[axis.rank][0][0], cut.ranges[-1][0][1]

    def forward(self, logits: Tensor, targets: Any, count: float | None = None) -> Tensor:
        if self.reduction != "mean":
            raise ValueError('a loss whose classes are cut over ranks needs reduction="mean"')
        return vocabulary_cross_entropy(
            logits,
            targets,
            self.axis.group,
            self.first,
            self.classes,
            self.count(targets) if count is None else count,
            self.ignore_index,
            self.label_smoothing,
            self.z_loss,
            self.weight,
        )

    def classes_of(self, output: Tensor) -> int:
        return self.classes

    def predictions(self, logits: Array) -> Array:
        return predictions(logits, self.axis.group, self.first, self.classes)

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        """Saves this rank's probabilities, and the targets as int64.

        With z-loss, one more number for each row; with weights two, and the weights of this rank's
        classes.
        """
        n, weighted = int(np.prod(shape[:-1])), self.weight is not None
        rows = 2 if weighted else 1 if self.z_loss else 0
        more = (n * rows + (self.classes if weighted and self.label_smoothing else 0)) * itemsize
        return LayerCost((), saved_bytes=n * (shape[-1] * itemsize + 8) + more)

    def traffic(self, shape: Shape, itemsize: int, input_grad: bool = True) -> Traffic:
        n, size = int(np.prod(shape[:-1])), self.axis.size
        sums = 3 if self.label_smoothing else 2
        return Traffic(
            [Sum("all_reduce", n, itemsize, size), Sum("all_reduce", sums * n, itemsize, size)]
        )
