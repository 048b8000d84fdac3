"""The base of all optimizers: a rule that changes a 1-D array by its gradient.

``step(data, grad)`` takes any 1-D slice of the flat parameters and the same slice of the
gradients. Serial training passes the whole array. A ZeRO rank or a server passes the part that it
owns, and keeps state for that part only. A rule that works element by element gives the same bits
whether the parts are stepped together or separately.

A rule works on one *piece* of the array at a time. Pieces are short, so that the arrays that the
rule uses stay in the processor's cache, and each is read from memory only once in a step. Results
go into the arrays themselves or into one scratch array, so a step allocates nothing.

Some rules must know where a parameter begins and ends: to leave biases out of weight decay, or to
give each layer its own rate. Slices of the flat array lack these boundaries; ``bind`` supplies
them:

    optimizer.bind(model.flat.slices)                                    # steps all
    optimizer.bind(model.flat.slices, start=shard.start, reduce=total)   # steps one shard

A shard may cut through a parameter. The parameter's norm is then a sum over shards, by ``reduce``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from minidist.engine.array import Array, module_of
from minidist.engine.versions import version_of, written

LearningRate = float | Callable[[int], float]
Reduce = Callable[[np.ndarray], object]  # sums a float64 host array over all shards, in place

PIECE = 1 << 16  # elements: five float32 arrays of this length are 1.3 MB and fit a level-2 cache


@dataclass(frozen=True)
class Layout:
    """Which parameters are in the array that is stepped, and how to sum over the other parts."""

    slices: dict[str, slice]
    start: int
    reduce: Reduce | None


@dataclass(frozen=True)
class Piece:
    """A range of elements to step at once; of one parameter only, if the rule needs that."""

    part: slice
    parameter: int  # its index among the parameters, -1 if the rule does not need it
    excluded: bool


class Optimizer:
    """Base of all optimizers: the learning rate, the step count and the state arrays.

    ``lr`` is a number, or a function from the step (0, 1, ...) to a number: a schedule.
    ``weight_decay`` pulls parameters towards zero, except those whose name matches a pattern in
    ``exclude``, such as ``("*bias", "*norm*")``. ``state`` maps names to arrays of the
    same length as the data; ``slots`` lists these names, so that memory can be predicted.
    """

    slots: tuple[str, ...] = ()
    layerwise = False

    def __init__(
        self, lr: LearningRate, weight_decay: float = 0.0, exclude: Sequence[str] = ()
    ) -> None:
        if not callable(lr) and not isinstance(lr, (int, float, np.number)):
            raise TypeError(
                f"{type(self).__name__}: the first argument is the learning rate, a number or a "
                f"schedule, not a {type(lr).__name__}: parameters are passed to "
                "step(model.flat.data, model.flat.grad)"
            )
        if not callable(lr) and not lr >= 0:
            raise ValueError(f"the learning rate must be at least 0, not {lr}")
        if not weight_decay >= 0:
            raise ValueError(f"weight_decay must be at least 0, not {weight_decay}")
        if isinstance(exclude, str):
            raise TypeError(f'exclude is a tuple of patterns: write ("{exclude}",)')
        self.lr = lr
        self.weight_decay = weight_decay
        self.exclude = tuple(exclude)
        self.steps = 0
        self.state: dict[str, Array] = {}
        self.layout: Layout | None = None
        self._pieces: list[Piece] = []
        self._scratch: Array | None = None
        self._stepped: dict[str, slice] | None = None  # the model's slices at the first step

    def __repr__(self) -> str:
        settings = {
            name: value
            for name, value in vars(self).items()
            if name not in ("layout", "slots", "state", "steps") and not name.startswith("_")
        }
        listed = ", ".join(f"{name}={value!r}" for name, value in settings.items())
        return f"{type(self).__name__}({listed})"

    def bind(self, slices: dict[str, slice], start: int = 0, reduce: Reduce | None = None) -> None:
        """Tell the optimizer which elements it steps: those of the flat array from ``start`` on.

        ``slices`` is the whole model's ``flat.slices``. If other ranks step the rest, ``reduce``
        must sum a small float64 array over all of them in place. Layer-wise rules need this for
        the norms of whole parameters; rules that work element by element never call it.
        """
        self.layout = Layout(slices, start, reduce)
        self._pieces = []

    def step(self, data: Array, grad: Array) -> None:
        """Update ``data`` in place by ``grad``; both are 1-D and have the same shape."""
        if data.shape != grad.shape or data.ndim != 1:
            raise ValueError(
                f"step: data {data.shape} and grad {grad.shape} must be 1-D and equal, as "
                "model.flat.data and model.flat.grad are"
            )
        self.prepare(data)
        # With a NumPy number, float32 arrays would be computed in float64.
        lr = float(self.lr(self.steps) if callable(self.lr) else self.lr)
        self.steps += 1
        rates = self.local_rates(data, grad, lr)
        for piece, scratch in self.pieces():
            part = piece.part
            self.update(
                data[part],
                grad[part],
                lr if rates is None else rates[piece.parameter],
                0.0 if piece.excluded else self.weight_decay,
                *[self.state[name][part] for name in self.slots],
                scratch,
            )
        written(data)  # a backward that needs the old values must not run any more

    def update(self, *args: Any, **kwargs: Any) -> None:
        """The rule itself, in place, for one piece. Each optimizer defines it as

        ``update(data, grad, lr, decay, *one array for each slot, scratch)``.
        """
        raise TypeError(f"{type(self).__name__} does not define update()")

    def local_rates(self, data: Array, grad: Array, lr: float) -> list[float] | None:
        """A learning rate for each parameter, or None if all have ``lr``. See layerwise.py."""
        return None

    def state_bytes(self) -> int:
        """Bytes of the state arrays now.

        The scratch array is not counted: it has one piece, and on a GPU the size of the data.
        """
        return sum(array.nbytes for array in self.state.values())

    def prepare(self, data: Array) -> None:
        """Allocate state at the first step; later, check that the array has the same length."""
        xp = module_of(data)
        version = version_of(data)
        if version is not None:
            if self._stepped is not None and self._stepped != version.layout:
                raise ValueError(
                    "step: parameters were frozen or unfrozen since this optimizer's first step, "
                    "and its state belongs to those before: make a new optimizer"
                )
            self._stepped = version.layout
        for name in self.slots:
            if name not in self.state:
                self.state[name] = xp.zeros_like(data)
            elif self.state[name].shape != data.shape:
                raise ValueError(
                    f"step: this optimizer has state for {self.state[name].size} parameters and "
                    f"was given {data.size}: use one optimizer for each array that is stepped"
                )
        if not self._pieces or self._pieces[-1].part.stop != data.size:
            # On a GPU pieces save nothing, and every extra kernel launch costs time.
            self._pieces = self._cut(data.size, PIECE if xp is np else max(1, data.size))
            self._scratch = None
        if self._scratch is None or self._scratch.dtype != data.dtype:
            longest = max((p.part.stop - p.part.start for p in self._pieces), default=0)
            self._scratch = xp.empty(longest, data.dtype)

    def pieces(self) -> list[tuple[Piece, Array]]:
        """The pieces of the array being stepped, each with scratch of its length."""
        scratch = self._scratch
        assert scratch is not None  # prepare() made it
        return [(p, scratch[: p.part.stop - p.part.start]) for p in self._pieces]

    def _cut(self, size: int, longest: int) -> list[Piece]:
        """Pieces of at most ``longest`` elements, also cut where rate or weight decay change."""
        runs = [Piece(slice(0, size), -1, False)]
        if self.layerwise or (self.weight_decay and self.exclude):
            runs = self._runs(size)
        return [
            Piece(slice(start, min(start + longest, run.part.stop)), run.parameter, run.excluded)
            for run in runs
            for start in range(run.part.start, run.part.stop, longest)
        ]

    def _runs(self, size: int) -> list[Piece]:
        """A range for each parameter; neighbours with equal rate and decay are joined."""
        if self.layout is None:
            raise RuntimeError(
                f"{type(self).__name__} must know where each parameter lies: call "
                "optimizer.bind(model.flat.slices) before the first step"
            )
        start, runs = self.layout.start, list[Piece]()
        for index, (name, where) in enumerate(self.layout.slices.items()):
            low, high = max(where.start - start, 0), min(where.stop - start, size)
            if low >= high:
                continue
            excluded = any(fnmatchcase(name, pattern) for pattern in self.exclude)
            if runs and not self.layerwise and runs[-1].excluded == excluded:
                low = runs.pop().part.start
            runs.append(Piece(slice(low, high), index, excluded))
        covered = sum(run.part.stop - run.part.start for run in runs)
        if covered != size:
            raise ValueError(
                f"step: {size} elements from {start} on were passed, but the bound slices "
                f"cover {covered} of them: bind with the start of the slice that is stepped"
            )
        return runs
