"""The score S: the number that is explained, as a function of the input.

    images (n, ...) ────────────────▶ the model ─▶ outputs (n, classes) ─────▶ S: that of ``target``
    tokens (n, l) ─▶ embed ─▶ e (n, l, width) ─▶ the other blocks ─▶ (n, l, classes) at ``position``

S is a logit, before the softmax. (A probability also grows if the logit of another class falls.)
Tokens are integers, for which derivatives do not exist. So for tokens the input x is the
embeddings; a map is summed over the width, which gives one number for each position.

A frozen copy of the model computes, in evaluation mode; the model is not changed.
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

    ``inputs``: the model's input, such as ``batch.inputs`` (n, ...); integers if the first block is
    an embedding. ``target``: a class for all inputs, (n,) classes, or None: the most likely of
    each. ``position``: if there is an output for each position, the one to explain.

    Raises TypeError for a model that is not a Sequential, and for inputs of the wrong kind of
    numbers; ValueError for a class or position that does not exist, and for other output shapes.
    """

    def __init__(
        self, model: Sequential, inputs: Any, target: Target = None, position: int = -1
    ) -> None:
        if not isinstance(model, Sequential):
            raise TypeError(
                f"explain: a {type(model).__name__} is not a Sequential: embeddings are the output "
                "of the first block, so a list of blocks is needed"
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
            raise ValueError(f"explain: outputs {output.shape} have no position {position}")
        if output.ndim not in (2, 3):
            raise ValueError(
                f"explain: outputs of shape {output.shape}: must be (n, classes) or (n, length, "
                "classes), to have one score for each input"
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
        """S of ``x``, which has the shape of ``self.x``: (n,), on the host."""
        with no_grad():
            output = self._at_position(self.rest(Tensor(x)).data)
        return arrays.to_host(output)[np.arange(len(self.classes)), self.classes]

    def gradient(self, x: Array) -> Array:
        """∂S/∂x, with the shape of x."""
        given = Tensor(x, requires_grad=True)
        output = self.rest(given)
        xp, one = output.xp, output.xp.zeros_like(output.data)
        self._at_position(one)[xp.arange(len(self.classes)), xp.asarray(self.classes)] = 1
        output.backward(one)
        return given.grad

    def as_map(self, contributions: Array) -> np.ndarray:
        """``contributions`` on the host; for tokens summed over the width: (n, l)."""
        found = arrays.to_host(contributions)
        return found.sum(axis=-1) if self.embeds else found

    def baseline(self, value: Any = None) -> Array:
        """The baseline b, with the shape of x, from ``value``: a number, an array, or None.

        None: 0, the mean of prepared images; for tokens the mean of the embedding table, at each
        position. (Embeddings of 0 would be a bad baseline. The layer norm after them gives the same
        result for all multiples of a vector, so S would change only very close to 0.) Raises
        ValueError for an array that does not broadcast to x.
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
                f"explain: a baseline of shape {base.shape} does not fit inputs {self.x.shape}"
            )
        return base + self.model.flat.xp.zeros_like(self.x)


def frozen(model: Sequential) -> Sequential:
    """A copy in evaluation mode without gradients, so that ``model`` is not written."""
    _ = [parameter.data for parameter in model.parameters()]  # raises, if they are not here, why
    return copy.deepcopy(model).freeze().eval()
