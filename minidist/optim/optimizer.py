"""What every optimizer is: a rule that moves a 1-D array against its gradient.

``step(data, grad)`` takes any 1-D slice of the flat parameters and the same slice of the
gradients. Serial training passes the whole; a ZeRO rank or a server passes the part it owns, and
then keeps state for that part alone. A rule that works element by element gives the same bits
whether the parts are stepped together or apart.

A rule is written for one *piece* at a time, short enough that the arrays it touches stay in the
processor's cache: each then travels from memory once a step, however many lines the rule has.
Results go into the arrays themselves or into one scratch array, so a step allocates nothing.

Some rules must know where a parameter begins and ends: to leave biases out of weight decay, or to
give each layer its own rate. A flat slice does not tell, so they are told once:

    optimizer.bind(model.flat.slices)                                    # steps the whole
    optimizer.bind(model.flat.slices, start=shard.start, reduce=total)   # steps one shard

A shard may cut through a parameter. Its norm is then a sum over shards, and ``reduce`` forms it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from minidist.engine.array import Array, module_of

LearningRate = float | Callable[[int], float]
Reduce = Callable[[np.ndarray], object]  # sums a float64 host array over all shards, in place

PIECE = 1 << 16  # elements: five float32 arrays of it are 1.3 MB, which a level-2 cache holds


@dataclass(frozen=True)
class Layout:
    """Which parameters lie in the array that is stepped, and who holds the rest of them."""

    slices: dict[str, slice]
    start: int
    reduce: Reduce | None


@dataclass(frozen=True)
class Piece:
    """A run of elements to step at once; of one parameter, if the rule cares for boundaries."""

    part: slice
    parameter: int  # its position among the parameters, -1 if it does not matter
    excluded: bool


class Optimizer:
    """Base of all: holds the learning rate, the step count and the state arrays.

    ``lr`` is a number, or a function from the step (0, 1, ...) to a number: a schedule.
    ``weight_decay`` pulls parameters towards zero, except those whose name matches a pattern in
    ``exclude``, such as ``("*bias", "*norm*")``. ``state`` maps names to arrays as long as the
    data stepped; ``slots`` names them beforehand, so that memory can be predicted.
    """

    slots: tuple[str, ...] = ()
    layerwise = False

    def __init__(
        self, lr: LearningRate, weight_decay: float = 0.0, exclude: Sequence[str] = ()
    ) -> None:
        if not callable(lr) and not isinstance(lr, (int, float, np.number)):
            raise TypeError(
                f"{type(self).__name__}: the first argument is the learning rate, a number or a "
                f"schedule, not a {type(lr).__name__}: what is trained is given to "
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

    def __repr__(self) -> str:
        given = {
            name: value
            for name, value in vars(self).items()
            if name not in ("layout", "slots", "state", "steps") and not name.startswith("_")
        }
        settings = ", ".join(f"{name}={value!r}" for name, value in given.items())
        return f"{type(self).__name__}({settings})"

    def bind(self, slices: dict[str, slice], start: int = 0, reduce: Reduce | None = None) -> None:
        """Say what will be stepped: the elements of the flat array from ``start`` on.

        ``slices`` is the whole model's ``flat.slices``. If others step the rest, ``reduce`` must
        sum a small float64 array over all of them in place: layer-wise rules then get the norms
        of whole parameters. Rules that work element by element never call it.
        """
        self.layout = Layout(slices, start, reduce)
        self._pieces = []

    def step(self, data: Array, grad: Array) -> None:
        """Move ``data`` one step against ``grad``, both 1-D and of one shape, in place."""
        if data.shape != grad.shape or data.ndim != 1:
            raise ValueError(
                f"step: data {data.shape} and grad {grad.shape} must be 1-D and equal, as "
                "model.flat.data and model.flat.grad are"
            )
        self.prepare(data)
        # A NumPy number would have float32 arrays computed with in float64.
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

    def update(self, *args: Any, **kwargs: Any) -> None:
        """The rule itself, in place, for one piece; each optimizer defines it as

        ``update(data, grad, lr, decay, *one array for each slot, scratch)``.
        """
        raise TypeError(f"{type(self).__name__} does not define update()")

    def local_rates(self, data: Array, grad: Array, lr: float) -> list[float] | None:
        """A learning rate for each parameter; None: all take ``lr``. See layerwise.py."""
        return None

    def state_bytes(self) -> int:
        """Bytes of state held now.

        Without the scratch array: one piece, and on a GPU as much as the data.
        """
        return sum(array.nbytes for array in self.state.values())

    def prepare(self, data: Array) -> None:
        """Allocate what the first step on an array needs; check that later ones fit."""
        xp = module_of(data)
        for name in self.slots:
            if name not in self.state:
                self.state[name] = xp.zeros_like(data)
            elif self.state[name].shape != data.shape:
                raise ValueError(
                    f"step: this optimizer has state for {self.state[name].size} parameters and "
                    f"was given {data.size}: use one optimizer for each array that is stepped"
                )
        if not self._pieces or self._pieces[-1].part.stop != data.size:
            # A GPU has no cache to keep warm, and every extra kernel launch costs.
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
        """The array in pieces of at most ``longest`` elements, cut where the rule must differ."""
        runs = [Piece(slice(0, size), -1, False)]
        if self.layerwise or (self.weight_decay and self.exclude):
            runs = self._runs(size)
        return [
            Piece(slice(start, min(start + longest, run.part.stop)), run.parameter, run.excluded)
            for run in runs
            for start in range(run.part.start, run.part.stop, longest)
        ]

    def _runs(self, size: int) -> list[Piece]:
        """One run for each parameter; neighbours of one kind are joined if they need no rate."""
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
                f"step: {size} parameters from {start} on were given, but the bound slices "
                f"cover {covered} of them: bind with the start of the slice that is stepped"
            )
        return runs
