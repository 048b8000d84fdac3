"""The base of all optimizers: a rule that changes a 1-D array by its gradient.

``step(data, grad)`` takes any 1-D slice of the flat parameters and the same slice of the
gradients. Serial training passes the whole array. A ZeRO rank or a server steps the parts that it
owns, and keeps state for these only (part.py). A rule that works element by element gives the same
bits whether the parts are stepped together or separately.

A rule works on one *piece* of the array at a time. Results go into the arrays themselves or into
one scratch array, so a step allocates nothing.

Settings are read in every step, so they may be changed between two: ``optimizer.lr = 0.01``. Some
parameters may have others. ``groups`` maps patterns of names to their settings:

    AdamW(1e-3, groups={"*bias": {"weight_decay": 0.0}, "head.*": {"lr": 1e-4}})

The first pattern that a name matches decides. Such groups, and layer-wise rules, must know where a
parameter begins and ends. Slices of the flat array lack these boundaries; ``bind`` supplies them:

    optimizer.bind(model.flat.slices)                                    # steps all
    optimizer.bind(model.flat.slices, start=shard.start, reduce=total)   # steps one shard

A shard may cut through a parameter. The parameter's norm is then a sum over shards, by ``reduce``.

``weight_decay`` λ means what it means in PyTorch's optimizer of the same name:

    g ← g + λ·w         before the rule (L2)     GradientDescent, SGD, Momentum, Nesterov, AdaGrad,
                                                 RMSprop, Adam
    w ← w - lr·λ·w      beside it (decoupled)    AdamW
    in the step whose norm is taken              LARS, LAMB
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minidist.engine.array import Array, module_of, to_host
from minidist.engine.fusion import fused
from minidist.engine.versions import written
from minidist.optim.part import Part, Piece, Reduce, matching

__all__ = ["Groups", "LearningRate", "Optimizer", "Part", "Piece", "Rates", "Reduce"]

LearningRate = float | Callable[[int], float]
Groups = Mapping[str, dict[str, Any]]  # by pattern of names: "lr" and "weight_decay" of these

PIECE = 1 << 16  # elements: five float32 arrays of this length are 1.3 MB and fit a level-2 cache


@dataclass(frozen=True)
class Rates:
    """The learning rate and the weight decay of a group, in one step."""

    lr: float
    decay: float


class Optimizer:
    """Base of all optimizers: the settings, the step count, and the parts that it steps.

    ``lr`` is a number, or a function from the step (0, 1, ...) to a number: a schedule.
    ``weight_decay`` pulls parameters towards zero, except those whose name matches a pattern in
    ``exclude``, such as ``("*bias", "*norm*")``. ``groups`` gives parameters of some names another
    ``lr`` or ``weight_decay``. ``slots`` lists the arrays that are kept, each of the same length as
    the data, so that memory can be predicted.
    """

    slots: tuple[str, ...] = ()
    layerwise = False
    own_decay = False  # whether ``update`` applies the weight decay; if not, the gradient has it

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
        self._admits: Callable[[list[Array]], bool] | None = None
        self.steps = 0
        self.parts: list[Part] = []  # all that it steps: one, unless a method cuts it up
        self.owner = ""  # the method that it belongs to
        for pattern, group in self.groups.items():
            _check_group(type(self).__name__, pattern, group)

    @property
    def lr(self) -> LearningRate:
        return self.__dict__["lr"]

    @lr.setter
    def lr(self, lr: LearningRate) -> None:
        self.__dict__["lr"] = _checked_rate(type(self).__name__, lr)

    @property
    def weight_decay(self) -> float:
        return self.__dict__["weight_decay"]

    @weight_decay.setter
    def weight_decay(self, weight_decay: float) -> None:
        self.__dict__["weight_decay"] = _checked_decay(weight_decay)

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
        """Tell the optimizer which elements ``step`` gets: those of the flat array from ``start``.

        ``slices`` is the whole model's ``flat.slices``. If other ranks step the rest, ``reduce``
        must sum a small float64 array over all of them in place. Layer-wise rules need this for
        the norms of whole parameters; rules that work element by element never call it. Raises
        ValueError for a pattern in ``groups`` that no name matches.
        """
        self.check_groups(slices)
        part = self.only_part()
        part.slices, part.start, part.reduce = slices, start, reduce
        part.cut_for = None

    def part(
        self, slices: Mapping[str, slice], start: int = 0, reduce: Reduce | None = None
    ) -> Part:
        """One more array to step, as in ``bind``: for methods, which call ``step_parts``."""
        self.parts.append(Part(slices, start, reduce))
        return self.parts[-1]

    def only_part(self) -> Part:
        """The part of an optimizer that steps one array; RuntimeError if a method cut it up."""
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
        """One step of several parts: (part, data, grad) of each."""
        for part, data, grad in items:
            if data.shape != grad.shape or data.ndim != 1:
                raise ValueError(
                    f"step: data {data.shape} and grad {grad.shape} must be 1-D and equal, as "
                    "model.flat.data and model.flat.grad are"
                )
            self.prepare(part, data)
        if self._admits is not None and not self._admits([grad for _, _, grad in items]):
            return  # a method leaves this step out: see parallel/guards.py
        rates = self.rates()
        self.steps += 1
        for part, data, grad in items:
            local = self.local_rates(part, data, grad, rates)
            for piece, scratch in part.pieces_and_scratch():
                where, own = piece.part, rates[piece.group]
                w, g, decay = data[where], grad[where], 0.0 if piece.excluded else own.decay
                if decay and not self.own_decay:
                    _penalise(module_of(w), w, g, decay, part.penalised[: w.size])
                    g, decay = part.penalised[: w.size], 0.0
                self.update(
                    w,
                    g,
                    own.lr if local is None else local[piece.parameter],
                    decay,
                    *[part.state[name][where] for name in self.slots],
                    scratch,
                )
            written(data)  # a backward that needs the old values must not run any more

    def update(self, *args: Any, **kwargs: Any) -> None:
        """The rule itself, in place, for one piece. Each optimizer defines it as

        ``update(data, grad, lr, decay, *one array for each slot, scratch)``. ``decay`` is 0, and
        ``grad`` has the penalty in it, unless the rule has ``own_decay``.
        """
        raise TypeError(f"{type(self).__name__} does not define update()")

    def rates(self) -> list[Rates]:
        """Learning rate and weight decay of each group in this step, and last of all others."""
        every = Rates(self._at_this_step(self.lr), float(self.weight_decay))
        found = []
        for pattern, group in self.groups.items():
            _check_group(type(self).__name__, pattern, group)
            lr = self._at_this_step(group["lr"]) if "lr" in group else every.lr
            found.append(Rates(lr, float(group.get("weight_decay", every.decay))))
        return [*found, every]

    def _at_this_step(self, lr: LearningRate) -> float:
        # With a NumPy number, float32 arrays would be computed in float64.
        return float(lr(self.steps) if callable(lr) else lr)

    def local_rates(
        self, part: Part, data: Array, grad: Array, rates: Sequence[Rates]
    ) -> list[float] | None:
        """A learning rate for each parameter; None if a group decides. See layerwise.py."""
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
        # On a GPU pieces save nothing, and every extra kernel launch costs time.
        longest = PIECE if xp is np else max(1, data.size)
        self.cut(part, data.size, longest)
        if part.scratch is None or part.scratch.dtype != data.dtype:
            widest = max((p.part.stop - p.part.start for p in part.pieces), default=0)
            part.scratch, part.penalised = xp.empty(widest, data.dtype), None
        if part.penalised is None and self.decays and not self.own_decay:
            part.penalised = xp.empty_like(part.scratch)

    @property
    def decays(self) -> bool:
        """Whether any parameter's weights decay."""
        own = any(group.get("weight_decay") for group in self.groups.values())
        return bool(self.weight_decay or own)

    def cut(self, part: Part, size: int, longest: int) -> None:
        """Cut a part into pieces, unless that is done."""
        exclude = self.exclude if self.decays or self.layerwise else ()
        part.cut(size, longest, self.groups, exclude, self.layerwise, type(self).__name__)

    # What is kept

    def arrays(self) -> list[Array]:
        """The state arrays of all parts."""
        return [array for part in self.parts for array in part.state.values()]

    def state_bytes(self) -> int:
        """Bytes of the state arrays now.

        The scratch array is not counted: it has one piece, and on a GPU the size of the data.
        """
        return sum(array.nbytes for array in self.arrays())

    def numbers(self) -> dict[str, float]:
        """What is kept besides the arrays, by the names of attributes."""
        return {"steps": self.steps}

    def state(self, model: Any) -> dict[str, np.ndarray]:
        """A copy of all that is kept, on the host, by names of the parameters of ``model``.

        Entries are ``"optimizer/mean/1.weight"``, of the parameter's shape, and ``"steps"``: the
        form that ``Method.state`` has, so each can load what the other saved.

        >>> from minidist.models import mlp
        >>> optimizer, model = Optimizer(0.1), mlp((4, 2)).init(0)
        >>> optimizer.state(model)
        {'steps': array(0)}
        """
        found = {name: np.array(value) for name, value in self.numbers().items()}
        for slot, array in self._part_of(model).state.items():
            whole = to_host(array)
            for name, parameter in model.trained().items():
                values = whole[model.flat.slices[name]].reshape(parameter.declared)
                found[f"optimizer/{slot}/{name}"] = values.copy()
        return found

    def load(self, state: Mapping[str, np.ndarray], model: Any) -> None:
        """Go on from what ``state(model)`` gave: of a model of the same names and shapes.

        Takes ``Method.state()`` too. Raises KeyError for another model's or another rule's state,
        ValueError for another shape; then nothing has changed.
        """
        part, named = self._part_of(model), model.trained()
        given = {n: np.asarray(values) for n, values in state.items() if n.startswith("optimizer/")}
        wanted = {f"optimizer/{slot}/{name}": p for slot in self.slots for name, p in named.items()}
        missing = [name for name in self.numbers() if name not in state]
        if not missing and state["steps"] == 0 and not given:
            wanted = {}  # saved before the first step
        if different := sorted(wanted.keys() ^ given.keys()) + missing:
            raise KeyError(f"load: the optimizer and the state differ in {different}")
        for name, parameter in wanted.items():
            if given[name].shape != parameter.declared:
                raise ValueError(
                    f"load: {name} is {given[name].shape} in the state, and the parameter is "
                    f"{parameter.declared}"
                )
        for name, value in self.numbers().items():
            setattr(self, name, type(value)(state[name]))
        self.prepare(part, model.flat.data)
        for slot, array in part.state.items():
            for name, where in model.flat.slices.items():
                values = given.get(f"optimizer/{slot}/{name}", np.zeros(named[name].declared))
                array[where] = module_of(array).asarray(values.reshape(-1).astype(array.dtype))

    def _part_of(self, model: Any) -> Part:
        """The part that steps all of ``model``."""
        part = self.only_part()
        if part.slices is None:
            self.bind(model.flat.slices)
        if any(array.size != model.flat.size for array in part.state.values()):
            sizes = sorted({array.size for array in part.state.values()})
            raise ValueError(
                f"this {type(self).__name__} steps {sizes[0]} elements, and the model has "
                f"{model.flat.size}: pass the model that it trains"
            )
        return part


def _checked_rate(rule: str, lr: Any) -> LearningRate:
    if not callable(lr) and not isinstance(lr, (int, float, np.number)):
        raise TypeError(
            f"{rule}: the first argument is the learning rate, a number or a schedule, not a "
            f"{type(lr).__name__}: parameters are passed to step(model.flat.data, model.flat.grad)"
        )
    if not callable(lr) and not lr >= 0:
        raise ValueError(f"the learning rate must be at least 0, not {lr}")
    return lr


def _checked_decay(weight_decay: Any) -> float:
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay must be at least 0, not {weight_decay}")
    return weight_decay


def _check_group(rule: str, pattern: str, group: Mapping[str, Any]) -> None:
    """Raise for a group's setting that a rule does not have, or that is none."""
    if unknown := sorted(set(group) - {"lr", "weight_decay"}):
        raise ValueError(
            f"{rule}: the group {pattern!r} has settings {unknown}, and a group has 'lr' and "
            "'weight_decay'"
        )
    _checked_rate(rule, group.get("lr", 0.0))
    _checked_decay(group.get("weight_decay", 0.0))


@fused
def _penalise(xp: Any, w: Array, g: Array, decay: float, out: Array) -> None:
    """g + λ·w, the gradient of the loss and of λ/2 · ‖w‖²."""
    xp.multiply(w, decay, out=out)
    out += g
