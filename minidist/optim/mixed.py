"""Mixed precision: compute in float16, update the parameters in float32.

float16 halves memory and traffic and is several times faster on a GPU's matrix units. It has two
problems, each with a solution (Micikevicius et al., "Mixed precision training", arXiv 1710.03740):

- *Small updates vanish.* float16 has 11 significant bits: 1 + 0.0004 is 1. So the optimizer steps
  a **master copy** in float32; the model's weights are that copy, rounded (section 3.1).
- *Small gradients vanish*: below 6e-8 they are 0. So the loss is multiplied by a large **scale**
  before the backward, and the gradients are divided by it after. If the scale is too large,
  gradients overflow to infinity. Then the step is skipped and the scale halved; after ``patience``
  steps without an overflow it is doubled (section 3.2). To detect an overflow, the host waits for
  the GPU once in every step.

NumPy computes float16 by converting each number to float32 and back, and has no float16 matrix
product in BLAS, so on a CPU all this is much *slower* than float32. There it is for learning and
tests; use it for speed on a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minidist.engine.array import Array, DType, module_of, read
from minidist.engine.fusion import fused
from minidist.engine.tensor import Tensor
from minidist.engine.versions import written
from minidist.optim.clip import clip_by_global_norm, norm_of
from minidist.optim.optimizer import Optimizer, Part, Reduce


def inner_setting(name: str) -> Any:
    """A property that reads and sets the inner rule's setting of this name."""
    return property(
        lambda self: getattr(self.inner, name), lambda self, to: setattr(self.inner, name, to)
    )


class MixedPrecision(Optimizer):
    """Any optimizer, applied to a float32 master copy of float16 parameters.

    ``clip`` is the largest norm allowed for the whole gradient. It is applied here, because the
    model's own gradient is still multiplied by the scale. Inputs are float16, like the model.
    Convert logits to float32 before the loss: float16 overflows in a sum of exponentials.

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
        self.inner = optimizer
        self.steps = 0
        self.parts = []
        self.owner = ""
        self.scale = scale
        self.patience = patience
        self.dtype = np.dtype(dtype)
        self.clip = clip
        self.skipped = 0
        self.good = 0  # steps since the scale changed
        # By the id of each part: the inner rule's part, and a buffer for the gradient in float32.
        self._inner: dict[int, tuple[Part, Array]] = {}

    lr = inner_setting("lr")
    weight_decay = inner_setting("weight_decay")
    exclude = inner_setting("exclude")
    groups = inner_setting("groups")

    @property
    def slots(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("master", *self.inner.slots)

    def numbers(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in ("steps", "scale", "skipped", "good")}

    def backward(self, loss: Tensor) -> None:
        """``loss.backward()`` with every gradient multiplied by the scale."""
        loss.backward(loss.xp.full_like(loss.data, self.scale))

    def step_parts(self, items: Sequence[tuple[Part, Array, Array]]) -> None:
        """Divide by the scale, step the master copy, round it into ``data``; or skip the step."""
        inner_items = []
        for part, data, grad in items:
            if data.shape != grad.shape or data.ndim != 1:
                raise ValueError(
                    f"step: data {data.shape} and grad {grad.shape} must be 1-D and equal"
                )
            self.prepare(part, data)
            inner, unscaled = self._inner[id(part)]
            _divided(module_of(data), grad, 1 / self.scale, unscaled)
            inner_items.append((inner, part.state["master"], unscaled))
        grads = [unscaled for _, _, unscaled in inner_items]
        reduce = items[0][0].reduce if items else None  # the parts are of the same ranks
        if self._overflowed(grads, reduce):
            self.scale /= 2
            self.skipped += 1
            self.good = 0
            return
        if self.clip is not None:
            self._clip(grads, reduce, self.clip)
        self.inner.steps = self.steps
        self.inner.step_parts(inner_items)
        self.steps = self.inner.steps
        for part, data, _ in items:
            part.state |= self._inner[id(part)][0].state
            data[...] = part.state["master"]
            written(data)
        self.good += 1
        if self.good == self.patience:
            self.scale *= 2
            self.good = 0

    def prepare(self, part: Part, data: Array) -> None:
        """At the first step, make the master copy, and the inner rule's state for it."""
        part.check_parameters(data)
        if "master" not in part.state:
            part.state["master"] = data.astype(self.dtype)
        master = part.state["master"]
        if master.shape != data.shape:
            raise ValueError(
                f"step: this optimizer has a master copy of {master.size} parameters and was "
                f"given {data.size}"
            )
        if id(part) not in self._inner:
            inner = self.inner.part(part.slices or {}, part.start, part.reduce)
            self._inner[id(part)] = inner, module_of(data).empty(data.shape, self.dtype)
        inner, _ = self._inner[id(part)]
        if (inner.slices, inner.start) != (part.slices, part.start):  # bind() was called again
            inner.slices, inner.start, inner.cut_for = part.slices, part.start, None
        inner.reduce = part.reduce
        self.inner.prepare(inner, master)
        part.state |= inner.state

    def load(self, state: Mapping[str, np.ndarray], model: Any) -> None:
        super().load(state, model)
        if not state["steps"]:  # made from the model at the first step, which may be loaded later
            for part in self.parts:
                part.state.pop("master", None)

    def _clip(self, grads: Sequence[Array], reduce: Reduce | None, limit: float) -> None:
        """Scale the gradients of all parts, so that the norm of all together is at most ``limit``.

        ``reduce`` sums over the ranks that step the rest.
        """
        if len(grads) == 1:  # without waiting for a GPU
            clip_by_global_norm(grads[0], limit, reduce)
            return
        square = np.array([sum(norm_of(grad) ** 2 for grad in grads)])
        if reduce is not None:
            reduce(square)
        norm = float(np.sqrt(square[0]))
        if norm > limit:
            for grad in grads:
                grad *= limit / norm

    def _overflowed(self, grads: Sequence[Array], reduce: Reduce | None) -> bool:
        """Whether any gradient on any rank is infinite or NaN: the same answer on every rank."""
        finite = all(bool(read(module_of(grad).isfinite(grad).all(), True)) for grad in grads)
        overflows = np.array([float(not finite)])
        if reduce is not None:
            reduce(overflows)
        return bool(overflows[0])


@fused
def _divided(xp: Any, grad: Array, inverse: float, out: Array) -> None:
    out[...] = grad
    out *= inverse
