"""Units: the groups of parameters that ZeRO reduces and gathers together.

A unit usually has the parameters of one block. Every rank owns a shard of each unit: it keeps the
summed gradients and the optimizer's state of this shard.

    flat.data   [ block 0 ............. | block 2 ..... | block 4 .. ]
    unit 0      [ rank 0 | rank 1 | r 2 ]
    unit 1                              [ r 0 | r 1 | r 2 ]
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from minidist.collectives import ring
from minidist.comm.comm import Future
from minidist.engine.array import Array
from minidist.nn.module import Module, Parameter
from minidist.optim.optimizer import Optimizer, Part
from minidist.parallel.blocks import blocks_of
from minidist.parallel.shared_parameters import identity, shared_by_blocks
from minidist.parallel.state import OptimizerShard

Slices = dict[str, slice]


@dataclass
class Unit:
    """Parameters that are reduced and gathered together, and this rank's shard of them."""

    parameters: dict[str, Parameter]
    slices: Slices  # in the unit, by parameter
    shards: Sequence[slice]  # in the unit, by rank
    own: slice  # this rank's of the shards
    part: Part  # of the optimizer
    shard: Array  # this rank's parameters
    grad: Array  # this rank's summed gradients
    data: Array = None  # stages 1 and 2: the whole unit's parameters
    buffer: Array = None  # the whole unit's gradients, before they are summed
    gathered: Array = None  # stage 3: memory for the whole unit's parameters
    readable: bool = True  # whether the parameters can be read
    accumulating: bool = False  # whether its backward may still add gradients
    reducing: Future | None = field(default=None, repr=False)
    gathering: Future | None = field(default=None, repr=False)

    @property
    def size(self) -> int:
        return self.shards[-1].stop

    def point(self, attribute: str, memory: Array) -> None:
        """Make every parameter's ``data`` or ``grad`` a view of ``memory``."""
        for name, parameter in self.parameters.items():
            view = memory[self.slices[name]].reshape(parameter.declared)
            parameter.attach(**{attribute: view})

    def make_unreadable(self, why: str) -> None:
        """From now on reading a parameter raises an error that says ``why``."""
        self.readable = False
        for parameter in self.parameters.values():
            parameter.absent = why
            del parameter.data

    def make_readable(self, memory: Array) -> None:
        """Make the parameters views of ``memory``."""
        self.readable = True
        self.point("data", memory)

    def optimizer_shard(self, optimizer: Optimizer) -> OptimizerShard:
        return OptimizerShard(
            self.parameters, self.slices, optimizer, self.part, self.shard, self.shards
        )


def cut_blocks(model: Module, apart: Collection[str]) -> tuple[list[Slices], dict[int, int]]:
    """A unit for each block that has parameters, in order; and the unit's number by block number.

    Parameters in ``apart`` are in no unit. One that two blocks share is in the first block's unit.
    """
    units: list[Slices] = []
    unit_of: dict[int, int] = {}
    seen: set[object] = set()
    for number, (prefix, block) in enumerate(blocks_of(model).items()):
        named = {
            n: p
            for n, p in block.trained(prefix).items()
            if n not in apart and identity(p) not in seen
        }
        seen |= {identity(p) for p in named.values()}
        if named:
            unit_of[number] = len(units)
            units.append(in_a_row(named))
    return units, unit_of


def in_a_row(named: dict[str, Parameter]) -> Slices:
    """The slices of these parameters in an array where one follows the other."""
    slices, start = {}, 0
    for name, parameter in named.items():
        slices[name] = slice(start, start + parameter.size)
        start += parameter.size
    return slices


def cut_flat(slices: Slices, model: Module, apart: Collection[str]) -> list[Slices]:
    """Units as slices of the flat array, in the order in which a backward completes them.

    One for each block, the last first; then one for each parameter in ``apart``.
    """
    blocks, _ = cut_blocks(model, ())
    runs: list[Slices] = []
    for names in reversed(blocks):
        run: Slices = {}
        for name in names:
            if name in apart:
                runs += [run] if run else []
                run = {}
            else:
                run[name] = slices[name]
        runs += [run] if run else []
    return runs + [{name: slices[name]} for name in slices if name in apart]


def owned_by_rank(lengths: Sequence[int], size: int) -> list[int]:
    """How many elements each rank owns, if units have these ``lengths``."""
    shards = [ring.chunks(total, size) for total in lengths]
    return [
        sum(part.stop - part.start for part in by_unit) for by_unit in zip(*shards, strict=True)
    ] or [0] * size


def extent(slices: Slices) -> int:
    """The number of elements of a unit."""
    return sum(part.stop - part.start for part in slices.values())


def counted_parts(unit: Unit, without: Collection[str]) -> list[slice]:
    """The slices of this rank's shard that hold none of the parameters ``without``."""
    whole = slice(0, unit.own.stop - unit.own.start)
    if not any(name in without for name in unit.slices):
        return [whole]
    parts = []
    for name, where in unit.slices.items():
        start, stop = max(where.start, unit.own.start), min(where.stop, unit.own.stop)
        if name not in without and start < stop:
            parts.append(slice(start - unit.own.start, stop - unit.own.start))
    return parts


def shared_slices(model: Module) -> list[Slices]:
    """A list with the unit of the parameters that several blocks share; empty if there are none."""
    named = model.named_parameters()
    shared = {name: named[name] for name in shared_by_blocks(model)}
    return [in_a_row(shared)] if shared else []
