"""Mixed precision: compute in float16, store the parameters in float32.

float16 halves memory and traffic and is several times faster on a GPU's matrix units. It has two
problems, each with a solution (Micikevicius et al., "Mixed precision training", arXiv 1710.03740):

- *Small updates vanish.* float16 has 11 significant bits: 1 + 0.0004 is 1. So the optimizer steps
  a **master copy** in float32; the model's weights are that copy, rounded (section 3.1).
- *Small gradients vanish*: below 6e-8 they are 0. So the loss is multiplied by a large **scale**
  before the backward and the gradients divided by it after. Too large a scale overflows to
  infinity: then the step is skipped and the scale halved; after ``patience`` good steps it is
  doubled again (section 3.2). To see an overflow, the host waits for the GPU once in every step.

NumPy computes float16 by converting each number to float32 and back, and has no float16 matrix
product in BLAS, so on a CPU all this is much *slower* than float32. There it is for learning and
tests; use it for speed on a GPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minidist.engine.array import Array, DType, fused, module_of
from minidist.engine.tensor import Tensor
from minidist.engine.versions import written
from minidist.optim.clip import clip_by_global_norm
from minidist.optim.optimizer import Optimizer, Reduce


class MixedPrecision(Optimizer):
    """Any optimizer, applied to a float32 master copy of float16 parameters.

    ``clip`` is the largest norm of the whole gradient. It is applied here, because the model's own
    gradient is still multiplied by the scale. Inputs are float16, like the model. Convert logits to
    float32 before the loss: a sum of exponentials needs the range.

    >>> from minidist.optim import Adam
    >>> optimizer = MixedPrecision(Adam(1e-3))
    >>> # loss = cross_entropy(model(x.astype("float16")).astype("float32"), targets)
    >>> # optimizer.backward(loss); optimizer.step(model.flat.data, model.flat.grad)
    """

    def __init__(
        self,
        optimizer: Optimizer,
        scale: float = 2.0**16,
        patience: int = 2000,
        dtype: DType = np.float32,
        clip: float | None = None,
    ) -> None:
        super().__init__(optimizer.lr)
        self.inner = optimizer
        self.slots = ("master", *optimizer.slots)
        self.scale = scale
        self.patience = patience
        self.dtype = np.dtype(dtype)
        self.clip = clip
        self.skipped = 0
        self._good = 0
        self._grad: Array | None = None

    def bind(self, slices: dict[str, slice], start: int = 0, reduce: Reduce | None = None) -> None:
        super().bind(slices, start, reduce)
        self.inner.bind(slices, start, reduce)

    def backward(self, loss: Tensor) -> None:
        """``loss.backward()`` with every gradient multiplied by the scale."""
        loss.backward(loss.xp.full_like(loss.data, self.scale))

    def step(self, data: Array, grad: Array) -> None:
        """Divide by the scale, step the master copy, round it into ``data``; or skip the step."""
        if data.shape != grad.shape or data.ndim != 1:
            raise ValueError(f"step: data {data.shape} and grad {grad.shape} must be 1-D and equal")
        xp = module_of(data)
        if "master" not in self.state:
            self.state["master"] = data.astype(self.dtype)
            self._grad = xp.empty(data.shape, self.dtype)
        assert self._grad is not None
        if self.state["master"].shape != data.shape:
            raise ValueError(
                f"step: this optimizer has a master copy of {self.state['master'].size} "
                f"parameters and was given {data.size}"
            )
        _divided(xp, grad, 1 / self.scale, self._grad)
        if self._overflowed(xp):
            self.scale /= 2
            self.skipped += 1
            self._good = 0
            return
        if self.clip is not None:
            reduce = self.layout.reduce if self.layout is not None else None
            clip_by_global_norm(self._grad, self.clip, reduce)
        self.inner.step(self.state["master"], self._grad)
        self.state |= self.inner.state
        self.steps = self.inner.steps
        data[...] = self.state["master"]
        written(data)
        self._good += 1
        if self._good == self.patience:
            self.scale *= 2
            self._good = 0

    def _overflowed(self, xp: Any) -> bool:
        """Whether any gradient on any shard is infinite or NaN. All shards then skip the step."""
        bad = np.array([float(not xp.isfinite(self._grad).all())])
        if self.layout is not None and self.layout.reduce is not None:
            self.layout.reduce(bad)
        return bool(bad[0])


@fused
def _divided(xp: Any, grad: Array, inverse: float, out: Array) -> None:
    out[...] = grad
    out *= inverse
