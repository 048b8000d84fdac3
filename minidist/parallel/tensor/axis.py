"""A rank's position and settings on the tensor axis, and the collectives that its layers send."""

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
    """Rank ``rank`` of the ``size`` ranks that hold one model, and its settings.

    ``sequence``: activations between the cut layers are cut along the sequence. ``keep``: a layer
    keeps its gathered input (see column.py). ``overlap``: sums of gradients overlap with
    computation. ``comm`` is None in a model that is declared only for another rank's costs.
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
            raise RuntimeError("this model is declared for another rank's costs: it cannot compute")
        return self.comm

    def sharers(self, count: int) -> Comm:
        """The ``count`` consecutive ranks, this one included, that share a head of keys."""
        comm = self.group
        return comm.remember(("sharers", count), lambda: comm.split(comm.rank // count))

    def part_of_sequence(self, length: int) -> slice:
        """This rank's positions of a sequence. Raises ShapeError unless ``size`` divides it."""
        if length % self.size:
            raise ShapeError(
                f"sequence parallelism cuts the sequence into equal parts: {length} positions do "
                f"not divide by {self.size} ranks"
            )
        each = length // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def whole(self, shape: Shape) -> Shape:
        """The whole shape (b, s, ...) of an activation that has ``shape`` on this rank."""
        if not self.sequence:
            return shape
        return (shape[0], shape[1] * self.size, *shape[2:])

    def own(self, shape: Shape) -> Shape:
        """The shape on this rank of an activation whose whole shape is (b, s, ...)."""
        if not self.sequence:
            return shape
        part = self.part_of_sequence(shape[1])
        return (shape[0], part.stop - part.start, *shape[2:])


@dataclass(frozen=True)
class Sum:
    """One collective of a layer: ``length`` elements, over groups of ``size`` consecutive ranks."""

    kind: str  # in RINGS
    length: int
    itemsize: int
    size: int
    hidden: bool = False  # whether it runs on the communication stream

    def cost(self, rank: int, machine: Machine) -> Cost:
        """The cost for ``rank`` of the axis."""
        return RINGS[self.kind].cost(
            self.length, self.itemsize, rank % self.size, self.size, machine
        )


@dataclass
class Traffic:
    """The collectives of one forward and one backward of some layers."""

    forward: list[Sum] = field(default_factory=list)
    backward: list[Sum] = field(default_factory=list)

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.forward + other.forward, self.backward + other.backward)
