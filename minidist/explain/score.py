"""The score: which number is explained, and of which input.

    images (n, ...) ────────────────▶ the model ─▶ outputs (n, classes) ─────▶ S: that of ``target``
    tokens (n, l) ─▶ embed ─▶ e (n, l, width) ─▶ the other blocks ─▶ (n, l, classes) at ``position``

S is a logit: what is before the softmax. (A probability would also go up because another class goes
down.) Tokens are integers, and nothing can be said of "a little more of token 17", so the input of
a model of tokens are its embeddings: their part of a map is summed over the width, which leaves a
number for each position.

The model itself stays as it is: a frozen copy computes, as in evaluation.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from minidist.engine import array as arrays
from minidist.engine.array import Array
from minidist.engine.tensor import Tensor, no_grad
from minidist.models.gpt import Embed
from minidist.nn import Embedding, Sequential

Target = Any  # a class, an array (n,) of classes, or None for the most likely one


class Score:
    """One output of ``model`` for each of ``inputs``, and its gradient.

    ``inputs``: what the model takes, such as ``batch.inputs`` (n, ...); integers if its first block
    is an embedding. ``target``: a class for all, one for each, or None: the likeliest of each.
    ``position``: of outputs for each position, which one; by default the last.

    Raises TypeError for integers where numbers are wanted, ValueError for a class, a target or a
    position that is not there.
    """

    def __init__(
        self, model: Sequential, inputs: Any, target: Target = None, position: int = -1
    ) -> None:
        if not isinstance(model, Sequential):
            raise TypeError(
                f"explain: a {type(model).__name__} is not a Sequential: embeddings are what comes "
                "out of its first block, so a list of blocks is wanted"
            )
        self.model = frozen(model)
        first, *_ = self.model.blocks.values()
        given = inputs.data if isinstance(inputs, Tensor) else inputs
        given = self.model.flat.xp.asarray(given)
        embeds = isinstance(first, (Embed, Embedding))
        self.rest = self.model[1:] if embeds else self.model
        if embeds != (given.dtype.kind in "iu"):
            wanted = "integers (n, length)" if embeds else "numbers"
            raise TypeError(
                f"explain: the model begins with {type(first).__name__}, so it takes {wanted}, and "
                f"the inputs are {given.dtype}: pass batch.inputs, or dataset.inputs_for(raw)"
            )
        if not len(given):
            raise ValueError("explain: no inputs: pass at least one, with a batch axis")
        with no_grad():
            x = first(given).data if embeds else given.astype(self.model.flat.data.dtype)
            output = self.rest(Tensor(x)).data
        self.embeds, self.x, self.position = embeds, x, position
        self.tokens = given if embeds else None
        if output.ndim == 3 and not -output.shape[1] <= position < output.shape[1]:
            raise ValueError(f"explain: position {position} of outputs {output.shape} is not there")
        if output.ndim not in (2, 3):
            raise ValueError(
                f"explain: outputs of shape {output.shape}: one score for each of the inputs is "
                "wanted, out of (n, classes) or (n, length, classes)"
            )
        self.classes = self._classes(arrays.to_host(self._at_position(output)), target)

    def _at_position(self, output: Array) -> Array:
        return output[:, self.position] if output.ndim == 3 else output

    def _classes(self, output: np.ndarray, target: Target) -> np.ndarray:
        """The class of each input: (n,)."""
        n, count = output.shape
        if target is None:
            return output.argmax(axis=1)
        classes = np.asarray(target)
        if classes.dtype.kind not in "iu" or classes.shape not in ((), (n,)):
            raise ValueError(
                f"explain: the target is a class, or one for each of {n} inputs, not "
                f"{classes.dtype} of shape {classes.shape}"
            )
        for wrong in classes[(classes < 0) | (classes >= count)].reshape(-1)[:1]:
            raise ValueError(f"explain: class {wrong} is not in [0, {count}), the model's outputs")
        return np.broadcast_to(classes, (n,)).copy()

    def __call__(self, x: Array) -> np.ndarray:
        """S of inputs like ``self.x``: (n,), on the host."""
        with no_grad():
            output = self._at_position(self.rest(Tensor(x)).data)
        return arrays.to_host(output)[np.arange(len(self.classes)), self.classes]

    def gradient(self, x: Array) -> Array:
        """∂S/∂x: of the shape of x. (The samples do not depend on each other.)"""
        given = Tensor(x, requires_grad=True)
        output = self.rest(given)
        xp, one = output.xp, output.xp.zeros_like(output.data)
        self._at_position(one)[xp.arange(len(self.classes)), xp.asarray(self.classes)] = 1
        output.backward(one)
        return given.grad

    def as_map(self, contributions: Array) -> np.ndarray:
        """On the host; of embeddings the sum over the width: (n, l)."""
        found = arrays.to_host(contributions)
        return found.sum(axis=-1) if self.embeds else found

    def baseline(self, value: Any = None) -> Array:
        """What stands for nothing, like x: ``value``, a number or an array, or None.

        None is 0, the mean of prepared images; of tokens it is the mean of the embedding's table in
        each position. (The embedding 0 would be a bad one: the layer norm behind it gives the same
        for all multiples of a vector, so everything would happen next to 0.)
        """
        if value is None and self.embeds:
            table = next(iter(self.model.blocks.values())).weight.data
            return self.x - table[self.tokens] + table.mean(axis=0)
        value = 0.0 if value is None else value
        base = self.model.flat.xp.asarray(value, dtype=self.x.dtype)
        try:
            shape = np.broadcast_shapes(base.shape, self.x.shape)
        except ValueError:
            shape = None
        if shape != self.x.shape:
            raise ValueError(
                f"explain: a baseline of shape {base.shape} is not one for inputs of {self.x.shape}"
            )
        return base + self.model.flat.xp.zeros_like(self.x)


def frozen(model: Sequential) -> Sequential:
    """A copy that computes as in evaluation and has no gradients: ``model`` is not written to."""
    _ = [parameter.data for parameter in model.parameters()]  # or the reason why there are none
    return copy.deepcopy(model).freeze().eval()
