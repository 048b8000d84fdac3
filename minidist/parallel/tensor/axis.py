"""Where a rank stands on the tensor axis, and what its layers send: the same for all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from minidist.collectives import ring
from minidist.collectives.algorithm import Algorithm
from minidist.collectives.cost import Cost
from minidist.comm.comm import Comm
from minidist.comm.machine import Machine
from minidist.nn.module import Shape
from minidist.ops.operands import ShapeError

RINGS: dict[str, Algorithm[..., Any]] = {
    "all_reduce": ring.all_reduce,
    "all_gather": ring.all_gather,
    "reduce_scatter": ring.reduce_scatter,
}


@dataclass(frozen=True)
class Axis:
    """One rank's place among ``size`` ranks that hold one model together, and its choices.

    ``sequence``: what is not cut inside a layer is cut along the sequence. ``keep``: a layer keeps
    its gathered input (see column.py). ``overlap``: gradients are summed beside arithmetic.
    ``comm`` is None where a model is declared only to ask what another rank's costs.
    """

    rank: int
    size: int
    comm: Comm | None = None
    sequence: bool = False
    keep: bool = False
    overlap: bool = True

    @property
    def group(self) -> Comm:
        if self.comm is None:
            raise RuntimeError("this model was declared for its costs: it belongs to another rank")
        return self.comm

    def sharers(self, count: int) -> Comm:
        """The ``count`` consecutive ranks of which this one shares a head of keys."""
        comm = self.group
        return comm.remember(("sharers", count), lambda: comm.split(comm.rank // count))

    def part_of_sequence(self, length: int) -> slice:
        """This rank's positions of a whole sequence."""
        if length % self.size:
            raise ShapeError(
                f"sequence parallelism cuts the sequence into equal parts: {length} positions do "
                f"not divide by {self.size} ranks"
            )
        each = length // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def whole(self, shape: Shape) -> Shape:
        """The shape (b, s, ...) of what has this rank's shape where the sequence is cut."""
        if not self.sequence:
            return shape
        return (shape[0], shape[1] * self.size, *shape[2:])

    def own(self, shape: Shape) -> Shape:
        """This rank's shape of what is (b, s, ...) whole."""
        if not self.sequence:
            return shape
        part = self.part_of_sequence(shape[1])
        return (shape[0], part.stop - part.start, *shape[2:])


@dataclass(frozen=True)
class Sum:
    """One collective of a layer: ``length`` elements over consecutive ranks, ``size`` each."""

    kind: str  # in RINGS
    length: int
    itemsize: int
    size: int
    hidden: bool = False  # on the communication stream

    def cost(self, rank: int, machine: Machine) -> Cost:
        """What ``rank`` of the axis sends."""
        return RINGS[self.kind].cost(
            self.length, self.itemsize, rank % self.size, self.size, machine
        )


@dataclass
class Traffic:
    """What one forward and one backward of some layers send."""

    forward: list[Sum] = field(default_factory=list)
    backward: list[Sum] = field(default_factory=list)

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.forward + other.forward, self.backward + other.backward)
