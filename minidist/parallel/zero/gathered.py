"""ZeRO stage 3 for gradients that accumulate over microbatches, as in a pipeline.

    microbatch 0   forward of block   1    2    3     backward   3    2    1
    stream                        ─1─  ─2─  ─3─             ─3─  ─2─  ─1─       each an all-gather
    last backward                                              ─g3─ ─g2─ ─g1─   reduce-scatters

Between steps a rank keeps only its shard of every block's parameters. Before a block computes,
forward or backward, its parameters are gathered into one of two slots of memory, while another
block computes. Gradients accumulate in the model's flat array, as in accumulated.py. With Ψ
parameters of e bytes, B in the largest block, m microbatches and p replicas:

    parameters     Ψe/p + 2Be       gradients  Ψe       optimizer  KΨe/p
    bytes a rank   (2m + 1)Ψe(p - 1)/p: 2m all-gathers (3m if the forward is computed again), and
                   one reduce-scatter

A parameter that several blocks of a rank use is gathered once a step, and kept until the step ends.
With one backward in a step, stage3.py needs less memory. Rajbhandari et al., "ZeRO", arXiv
1910.02054, section 7.2.2.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from minidist.collectives import ring
from minidist.collectives.series import Series
from minidist.comm.comm import Comm
from minidist.engine import array as arrays
from minidist.engine.array import Array
from minidist.engine.tensor import Tensor, as_tensor
from minidist.nn.module import Module
from minidist.parallel.blocks import blocks_of
from minidist.parallel.gradient_sync import Replicas
from minidist.parallel.state import State
from minidist.parallel.zero.accumulated import ReduceScatterUnits
from minidist.parallel.zero.stage1 import plan_numbers
from minidist.parallel.zero.units import Slices, Unit, extent, owned_by_rank


class GatheredUnits(ReduceScatterUnits):
    """ZeRO stage 3 for gradients that accumulate in the flat array, such as a pipeline's."""

    def allocate(self, seed: int) -> None:
        super().allocate(seed)
        flat, xp = self.model.flat, arrays.module_of(self.model.flat.data)
        in_blocks, self.number_of = by_block(self.model, [unit.slices for unit in self.units])
        self.in_blocks = [[self.units[i] for i in found] for found in in_blocks]
        largest = max((sum(u.size for u in block) for block in self.in_blocks), default=0)
        slots = min(2, len(self.in_blocks))
        self.slots = [xp.zeros(largest, flat.data.dtype) for _ in range(slots)]
        for index, block in enumerate(self.in_blocks):
            start = 0
            for unit in block:
                unit.gathered = self.slots[index % 2][start : start + unit.size]
                start += unit.size
        for unit in self.kept:
            unit.gathered = xp.zeros(unit.size, flat.data.dtype)
        for unit in self.units:
            unit.shard, unit.data = unit.shard.copy(), None
            unit.point("data", unit.gathered)
        flat.release()  # from now on the whole array is on no rank
        self.frozen = [flat.frozen] if flat.frozen.size else []
        self.outdated = True  # the kept units have the values of the last step

    @property
    def kept(self) -> list[Unit]:
        """Units of parameters that several blocks use: they stay gathered for a whole step."""
        inside = {id(unit) for block in self.in_blocks for unit in block}
        return [unit for unit in self.units if id(unit) not in inside]

    def begin(self, step: int) -> None:
        super().begin(step)
        self.outdated = True

    def forward(self, x: Any) -> Tensor:
        return self.run(self.model, x)

    def run(self, part: Module, x: Any) -> Tensor:
        """The output of some blocks; each is gathered before its forward and its backward."""
        if self.outdated:
            for unit in self.kept:
                self.gather(unit)
            for unit in self.kept:
                self.wait_for_parameters(unit)
            self.outdated = False
        x = as_tensor(x)
        numbers = [self.number_of.get(name) for name in blocks_of(part)]
        here = [number for number in numbers if number is not None]
        for number, block in zip(numbers, blocks_of(part).values(), strict=True):
            if number is not None:
                self.prepare(number, here, 1)
            x = block(x)
            if number is not None and x.requires_grad:
                x.register_hook(partial(self.before_backward, number, here))
        return x

    def before_backward(self, number: int, here: list[int], grad: Array) -> None:
        self.prepare(number, here, -1)

    def prepare(self, number: int, here: list[int], step: int) -> None:
        """Wait for the parameters of block ``number``, and start to gather the next block's."""
        for unit in self.in_blocks[number]:
            self.gather(unit)
        for unit in self.in_blocks[number]:
            self.wait_for_parameters(unit)
        following = here.index(number) + step
        if 0 <= following < len(here):
            for unit in self.in_blocks[here[following]]:
                self.gather(unit)

    def gather(self, unit: Unit) -> None:
        """Start to gather a unit, unless that has started already."""
        assert self.comm is not None
        if unit.gathering is None:
            unit.gathering = self.comm.spawn(partial(self._gather, unit))

    def _gather(self, unit: Unit, stream: Comm) -> None:
        unit.gathered[unit.own] = unit.shard
        ring.all_gather(stream, unit.gathered, unit.shards)

    def wait_for_parameters(self, unit: Unit) -> None:
        assert self.comm is not None and unit.gathering is not None
        with self.comm.step("wait for parameters"):
            unit.gathering.wait()
        unit.gathering = None

    def update(self, limit: float | None = None) -> None:
        """Clip, and step the optimizer on this rank's shards. Gathering waits for the next use."""
        self.clip(limit)
        self.step_shards()
        self.outdated = True

    # What is kept

    def arrays(self) -> dict[str, list[Array]]:
        shards = [unit.shard for unit in self.units]
        gathered = [*self.slots, *(unit.gathered for unit in self.kept)]
        return super().arrays() | {"parameters": shards + gathered + self.frozen}

    def parameters(self) -> State:
        """The whole model on the host, gathered unit by unit."""
        found: State = {}
        for unit in self.units:
            self.gather(unit)
            self.wait_for_parameters(unit)
            for name, parameter in unit.parameters.items():
                found[name] = arrays.to_host(parameter.data).copy()
        for name, parameter in self.model.frozen().items():
            found[name] = arrays.to_host(parameter.data).copy()
        return {name: found[name] for name in self.model.named_parameters()}

    def load_parameters(self, by_name: State) -> None:
        assert self.comm is not None
        for unit in self.units:
            unit.shard[...] = unit.optimizer_shard(self.optimizer).cut(self.comm, by_name)
        self.outdated = True
        for name, buffer in (self.model.frozen() | self.model.named_buffers()).items():
            buffer.data[...] = arrays.module_of(buffer.data).asarray(by_name[name])

    # The formulas

    def plan_update(self, series: Series, of: Replicas, units: list[Slices]) -> None:
        """The norms; then an all-gather of each unit for each pass that needs it."""
        in_blocks, _ = by_block(of.model, units)
        inside = {index for block in in_blocks for index in block}
        plan_numbers(series, of, [len(unit) for unit in units])
        for index, unit in enumerate(units):
            for _ in range(of.passes if index in inside else 1):
                series.all_gather(extent(unit), of.itemsize)

    def memory(self, of: Replicas) -> dict[str, list[int]]:
        units = self.unit_slices(of)
        sizes = [extent(unit) for unit in units]
        in_blocks, _ = by_block(of.model, units)
        inside = {index for block in in_blocks for index in block}
        largest = max((sum(sizes[i] for i in block) for block in in_blocks), default=0)
        kept = min(2, len(in_blocks)) * largest
        kept += sum(size for index, size in enumerate(sizes) if index not in inside)
        owned = owned_by_rank(sizes, of.size)
        return super().memory(of) | {
            "parameters": [(own + kept) * of.itemsize + of.frozen_bytes for own in owned]
        }


def by_block(model: Module, units: list[Slices]) -> tuple[list[list[int]], dict[str, int]]:
    """The units of each block that has any, in order; and the number in this list by block name.

    A unit with a parameter of several blocks belongs to none of them.
    """
    users: dict[str, set[str]] = {}
    for prefix, block in blocks_of(model).items():
        for name in block.trained(prefix):
            users.setdefault(name, set()).add(prefix)
    found: list[list[int]] = []
    place: dict[str, int] = {}
    for prefix in blocks_of(model):
        mine = [
            index
            for index, unit in enumerate(units)
            if all(users.get(name) == {prefix} for name in unit)
        ]
        if mine:
            place[prefix] = len(found)
            found.append(mine)
    return found, place
