"""The base of all optimizers: a rule that changes a 1-D array by its gradient.

``step(data, grad)`` takes any 1-D slice of the flat parameters and the same slice of the
gradients. Serial training passes the whole array. A ZeRO rank or a server steps the parts that it
owns, and keeps state for these only (part.py). A rule that works element by element gives the same
bits whether the parts are stepped together or separately.

A rule works on one *piece* of the array at a time. Results go into the arrays themselves or into
one scratch array, so a step allocates nothing.

Groups of parameters with settings of their own (settings.py), and layer-wise rules, must know where
a parameter begins and ends. Slices of the flat array lack these boundaries; ``bind`` supplies them:

    optimizer.bind(model.flat.slices)                                    # steps all
    optimizer.bind(model.flat.slices, start=shard.start, reduce=total)   # steps one shard

A shard may cut through a parameter. The parameter's norm is then a sum over shards, by ``reduce``.

``weight_decay`` λ means what it means in PyTorch's optimizer of the same name:

    g ← g + λ·w       L2 penalty, added before the rule   GradientDescent, SGD, Momentum, Nesterov,
                                                          AdaGrad, RMSprop, Adam
    w ← w - lr·λ·w    decoupled from the rule             AdamW
    λ·w is a part of the step, whose norm is taken        LARS, LAMB
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from minidist.engine.array import Array, module_of
from minidist.engine.fusion import fused
from minidist.engine.versions import written
from minidist.optim.part import Part, Piece, Reduce, matching
from minidist.optim.saving import Saving
from minidist.optim.settings import (
    Groups,
    LearningRate,
    Rates,
    check_group,
    checked_decay,
    checked_rate,
)

__all__ = ["Groups", "LearningRate", "Optimizer", "Part", "Piece", "Rates", "Reduce"]

PIECE = 1 << 16  # elements: five float32 arrays of this length are 1.3 MB and fit a level-2 cache


class Optimizer(Saving):
    """Base of all optimizers: the settings, the step count, and the parts that it steps.

    ``lr`` is a number, or a function from the step (0, 1, ...) to a number: a schedule.
    ``weight_decay`` pulls parameters towards zero, except those whose name matches a pattern in
    ``exclude``, such as ``("*bias", "*norm*")``. ``groups`` gives parameters of some names another
    ``lr`` or ``weight_decay``. ``slots`` names the arrays that a rule keeps, each as long as the
    data, so that memory can be predicted.
    """

    slots: tuple[str, ...] = ()
    layerwise = False  # whether the rule needs the norms of whole parameters
    own_decay = False  # whether ``update`` applies the weight decay; if not, ``grad`` contains it

    def __init__(
        self,
        lr: LearningRate,
        weight_decay: float = 0.0,
        exclude: Sequence[str] = (),
        groups: Groups | None = None,
    ) -> None:
        if isinstance(exclude, str):
            raise TypeError(f'exclude is a tuple of patterns: write ("{exclude}",)')
        self.lr = lr
        self.weight_decay = weight_decay
        self.exclude = tuple(exclude)
        self.groups = dict(groups or {})
        self._may_step: Callable[[list[Array]], bool] | None = None  # see Method.guard
        self.steps = 0
        self.parts: list[Part] = []  # one, unless a method steps several parts of the model
        self.owner = ""  # the name of the method that it belongs to
        for pattern, group in self.groups.items():
            check_group(type(self).__name__, pattern, group)

    @property
    def lr(self) -> LearningRate:
        return self.__dict__["lr"]

    @lr.setter
    def lr(self, lr: LearningRate) -> None:
        self.__dict__["lr"] = checked_rate(type(self).__name__, lr)

    @property
    def weight_decay(self) -> float:
        return self.__dict__["weight_decay"]

    @weight_decay.setter
    def weight_decay(self, weight_decay: float) -> None:
        self.__dict__["weight_decay"] = checked_decay(weight_decay)

    def __repr__(self) -> str:
        hidden = ("owner", "parts", "slots", "steps", *(() if self.groups else ("groups",)))
        settings = {name: value for name, value in vars(self).items() if name not in hidden}
        listed = ", ".join(
            f"{name}={value!r}" for name, value in settings.items() if not name.startswith("_")
        )
        return f"{type(self).__name__}({listed})"

    # What it steps

    def bind(
        self, slices: Mapping[str, slice], start: int = 0, reduce: Reduce | None = None
    ) -> None:
        """Tell the optimizer that ``step`` gets the elements of the flat array from ``start`` on.

        ``slices`` is the whole model's ``flat.slices``. If other ranks step the rest, ``reduce``
        must sum a small float64 array over all of them in place. Layer-wise rules call it for the
        norms of whole parameters; rules that work element by element do not call it. Raises
        ValueError if no parameter's name matches a pattern in ``groups``.
        """
        self.check_groups(slices)
        part = self.only_part()
        part.slices, part.start, part.reduce = slices, start, reduce
        part.cut_for = None

    def part(
        self, slices: Mapping[str, slice], start: int = 0, reduce: Reduce | None = None
    ) -> Part:
        """Add a part to step, with the arguments of ``bind``: for methods, which then call
        ``step_parts``."""
        self.parts.append(Part(slices, start, reduce))
        return self.parts[-1]

    def only_part(self) -> Part:
        """The only part of an optimizer that steps one array; RuntimeError if there are more."""
        if len(self.parts) > 1:
            raise RuntimeError(
                f"this {type(self).__name__} steps {len(self.parts)} parts of a model for a "
                "method: train by method.step, save by method.state"
            )
        if not self.parts:
            self.parts.append(Part())
        return self.parts[0]

    def check_groups(self, names: Iterable[str]) -> None:
        """Raise ValueError if a pattern in ``groups`` matches none of these parameters."""
        names = list(names)
        for pattern in self.groups:
            if not any(matching(name, [pattern]) == 0 for name in names):
                raise ValueError(
                    f"{type(self).__name__}: no parameter's name matches the group {pattern!r}: "
                    f"the names are {', '.join(names)}"
                )

    # Stepping

    def step(self, data: Array, grad: Array) -> None:
        """Update ``data`` in place by ``grad``; both are 1-D and have the same shape."""
        self.step_parts([(self.only_part(), data, grad)])

    def step_parts(self, items: Sequence[tuple[Part, Array, Array]]) -> None:
        """One step of several parts, each given as (part, data, grad)."""
        for part, data, grad in items:
            if data.shape != grad.shape or data.ndim != 1:
                raise ValueError(
                    f"step: data {data.shape} and grad {grad.shape} must be 1-D and equal, as "
                    "model.flat.data and model.flat.grad are"
                )
            self.prepare(part, data)
        if self._may_step is not None and not self._may_step([grad for _, _, grad in items]):
            return  # the method skips this step: see parallel/guards.py
        rates = self.rates()
        self.steps += 1
        for part, data, grad in items:
            local = self.local_rates(part, data, grad, rates)
            for piece, scratch in part.pieces_and_scratch():
                where, group = piece.where, rates[piece.group]
                w, g = data[where], grad[where]
                lr = group.lr if local is None else local[piece.parameter]
                decay = 0.0 if piece.excluded else group.decay
                if decay and not self.own_decay:
                    _penalise(module_of(w), w, g, decay, part.penalised[: w.size])
                    g, decay = part.penalised[: w.size], 0.0
                state = [part.state[name][where] for name in self.slots]
                self.update(w, g, lr, decay, *state, scratch)
            written(data)  # from now on a backward that needs the old values is refused

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Apply the rule to one piece, in place. Each optimizer defines it as

        ``update(data, grad, lr, decay, *one array for each slot, scratch)``. Unless the rule has
        ``own_decay``, ``decay`` is 0, and the penalty λ·w has been added to ``grad``.
        """
        raise TypeError(f"{type(self).__name__} does not define update()")

    def rates(self) -> list[Rates]:
        """Learning rate and weight decay in this step: of each group, and last of the rest."""
        rest = Rates(self._at_this_step(self.lr), float(self.weight_decay))
        rates = []
        for pattern, group in self.groups.items():
            check_group(type(self).__name__, pattern, group)
            lr = self._at_this_step(group["lr"]) if "lr" in group else rest.lr
            rates.append(Rates(lr, float(group.get("weight_decay", rest.decay))))
        return [*rates, rest]  # so that rates[-1] is of a piece in no group

    def _at_this_step(self, lr: LearningRate) -> float:
        # A Python number: a NumPy float64 would turn float32 arrays into float64.
        return float(lr(self.steps) if callable(lr) else lr)

    def local_rates(
        self, part: Part, data: Array, grad: Array, rates: Sequence[Rates]
    ) -> list[float] | None:
        """A learning rate for each parameter, or None: then ``rates`` apply. See layerwise.py."""
        return None

    def prepare(self, part: Part, data: Array) -> None:
        """Allocate state at the first step; later, check that the array has the same length."""
        xp = module_of(data)
        part.check_parameters(data)
        if data.dtype.itemsize < 4 and "square" in self.slots:
            raise TypeError(
                f"{type(self).__name__} of {data.dtype} parameters: squares of gradients below "
                f"0.0002 are 0 in {data.dtype}, and so is ε, so it would divide by 0: wrap it, "
                f"MixedPrecision({type(self).__name__}(...)), or make the model with "
                'init(dtype="float32")'
            )
        for name in self.slots:
            if name not in part.state:
                part.state[name] = xp.zeros_like(data)
            elif part.state[name].shape != data.shape:
                raise ValueError(
                    f"step: this optimizer has state for {part.state[name].size} parameters and "
                    f"was given {data.size}: use one optimizer for each array that is stepped"
                )
        # On a GPU one piece: shorter ones save nothing, and each kernel launch costs time.
        longest = PIECE if xp is np else max(1, data.size)
        groups = self.groups.values()
        decays = bool(self.weight_decay) or any(group.get("weight_decay") for group in groups)
        exclude = self.exclude if decays or self.layerwise else ()
        part.cut(data.size, longest, self.groups, exclude, self.layerwise, type(self).__name__)
        if part.scratch is None or part.scratch.dtype != data.dtype:
            size = max((p.where.stop - p.where.start for p in part.pieces), default=0)
            part.scratch, part.penalised = xp.empty(size, data.dtype), None
        if part.penalised is None and decays and not self.own_decay:
            part.penalised = xp.empty_like(part.scratch)


@fused
def _penalise(xp: Any, w: Array, g: Array, decay: float, out: Array) -> None:
    """out ← g + λ·w, the gradient of the loss plus λ/2 · ‖w‖²."""
    xp.multiply(w, decay, out=out)
    out += g
