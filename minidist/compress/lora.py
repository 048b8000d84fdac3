"""LoRA: fine-tune a trained model by training a few added weights; all others are frozen.

    y = x W + (α / r) · (x A) B        W (i, o) frozen;  A (i, r) and B (r, o) trained

A starts random and B at zero, so the adapted model starts equal to the trained one. A layer has
r (i + o) trained parameters in place of i · o. Gradients, optimizer state and the bytes of data
parallelism shrink in the same proportion: with p ranks a ring sends 2 (p - 1) / p times the bytes
of the *trained* parameters. The forward still needs W. Afterwards ``merge`` adds (α / r) A B to W,
so the final model is as fast and as large as the original.

    model = adapt(gpt(63), rank=4)                     # declared; the rest is frozen
    method = DataParallel(model, loss, optimizer, comm)
    method.load_parameters(method.parameters() | adapted_names(model, trained))
    ...                                                # train, by any method that supports freezing
    merged = merge(gpt(63), method.parameters(), alpha=8)

Source: Hu et al., "LoRA: low-rank adaptation of large language models", arXiv 2106.09685,
section 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minidist import ops
from minidist.compress.rebuild import Values, exchange, filled
from minidist.engine.tensor import Tensor
from minidist.nn.init import constant, normal
from minidist.nn.layers import Linear
from minidist.nn.module import LayerCost, Module, Parameter, Shape


class LoRA(Module):
    """A linear layer with a low-rank correction: x W + b + (α / r) (x A) B.

    Raises ValueError for a rank above that of W, or an alpha of 0 or below.
    """

    def __init__(self, inner: Linear, rank: int, alpha: float) -> None:
        inputs, outputs = inner.weight.declared
        if rank % 1 or not 1 <= rank <= min(inputs, outputs):
            raise ValueError(
                f"LoRA: the rank must be at least 1 and at most that of the weight {inputs} × "
                f"{outputs}, not {rank}"
            )
        if not 0 < alpha < math.inf:
            raise ValueError(f"LoRA: alpha must be above 0 and finite, not {alpha}")
        self.inner = inner
        self.A = Parameter((inputs, rank), normal(inputs**-0.5))
        self.B = Parameter((rank, outputs), constant(0))
        self.alpha = alpha

    @property
    def settings(self) -> dict[str, Any]:
        return {"rank": self.A.declared[1], "alpha": self.alpha}

    def forward(self, x: Any) -> Tensor:
        scale = self.alpha / self.A.declared[1]
        low = ops.linear(x, self.A) * scale  # (.., i) @ (i, r) -> (.., r)
        return self.inner(x) + ops.linear(low, self.B)  # (.., r) @ (r, o) -> (.., o)

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        """Saves x and x A; the frozen weight has no gradient."""
        inner = self.inner.cost(shape, itemsize)
        inputs, rank = self.A.declared
        rows = int(np.prod(shape[:-1]))
        added = 2 * rows * rank * (inputs + inner.shape[-1])
        low = rows * rank * itemsize
        outputs = int(np.prod(inner.shape)) * itemsize
        return LayerCost(
            inner.shape,
            inner.flops + added,
            inner.input_flops + added,
            inner.weight_flops + added,
            saves_input=True,
            saved_bytes=low,
            defers_input=True,
            deferred_bytes=outputs + 2 * low,  # the gradients of both products, and x A
        )

    def __repr__(self) -> str:
        return f"LoRA({self.inner!r}, rank={self.A.declared[1]}, alpha={self.alpha:g})"


def adapt(
    model: Module,
    rank: int = 4,
    alpha: float = 8.0,
    where: Callable[[str], bool] = lambda path: True,
) -> Module:
    """Add LoRA to the linear layers of a declared model, in place, and freeze all other parameters.

    ``where(path)`` selects layers. Raises ValueError if none is selected, or if the model is
    initialised or adapted already.
    """
    if model.initialised:
        raise ValueError(
            "adapt: the model is initialised already: pass a declared one, such as "
            "gpt(63), and load the trained parameters after init"
        )
    if _layers(model):
        raise ValueError("adapt: the model was adapted already: merge it first")
    layers = []

    def change(path: str, layer: Module) -> Module | None:
        if not isinstance(layer, Linear) or not where(path):
            return None
        layers.append(path)
        return LoRA(layer, rank, alpha)

    exchange(model, change)
    if not layers:
        raise ValueError("adapt: no linear layer was selected")
    added = {f"{path}.{name}" for path in layers for name in "AB"}
    for name, parameter in model.named_parameters().items():
        if name not in added:
            parameter.requires_grad = False
    return model


def adapted_names(model: Module, trained: Values) -> dict[str, np.ndarray]:
    """The parameters of a trained model, under their names in the adapted ``model``."""
    inside = _layers(model)
    renamed = {}
    for name, values in trained.items():
        path, _, last = name.rpartition(".")
        renamed[f"{path}.inner.{last}" if path in inside else name] = values
    return renamed


def merge(plain: Module, adapted: Values, alpha: float = 8.0) -> Module:
    """Initialise ``plain``, a declared model, with the weights W + (α / r) A B.

    ``adapted``: the parameters of a model made by ``adapt`` with this ``alpha``. Raises ValueError
    if there is nothing to merge, or the adapted weights were quantized.
    """
    if not 0 < alpha < math.inf:
        raise ValueError(f"merge: alpha must be above 0 and finite, not {alpha}")
    state = dict(adapted)
    added = [name for name in state if name.endswith(".A")]
    if not added:
        raise ValueError("merge: these are no parameters of a model that adapt() made: no '.A'")
    for name in added:
        path = name.removesuffix(".A")
        if f"{path}.inner.weight" not in state:
            raise ValueError(
                f"merge: {path}.inner has no weight to add to, as after quantization: merge first, "
                "then quantize"
            )
        A, B = state.pop(f"{path}.A"), state.pop(f"{path}.B")
        correction = (alpha / A.shape[1]) * (A.astype(np.float64) @ B.astype(np.float64))
        W = state[f"{path}.inner.weight"]
        state[f"{path}.inner.weight"] = (W + correction).astype(W.dtype)
        for last in ("weight", "bias"):
            if f"{path}.inner.{last}" in state:
                state[f"{path}.{last}"] = state.pop(f"{path}.inner.{last}")
    return filled(plain, state, next(iter(state.values())).dtype)


def _layers(model: Module) -> set[str]:
    return {path for path, layer in model.named_modules().items() if isinstance(layer, LoRA)}
