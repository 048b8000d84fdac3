"""ZeRO stage 2: a block's gradients are sent to their owners while the backward runs.

    backward of block    4    3    2    1
    memory             slot0 slot1 slot0 slot1        two slots alternate
    stream                 ─g4─  ─g3─  ─g2─  ─g1─     each a reduce-scatter

A hook on each block's output runs just before that block's backward. At that time the next block's
backward is complete, so the hook sends the next block's gradients. Two blocks later their slot is
used again, once they have been sent. Gradients cannot accumulate in a slot, so this is for one
backward in a step; for several see accumulated.py. The cost is in stage1.py. Rajbhandari et al.,
"ZeRO", arXiv 1910.02054, section 5.2.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from minidist.collectives import ring
from minidist.collectives.series import Series
from minidist.comm.comm import Comm
from minidist.comm.machine import Machine
from minidist.engine import array as arrays
from minidist.engine.array import Array
from minidist.engine.tensor import Tensor, as_tensor
from minidist.nn.loss import Loss
from minidist.nn.module import Module, Parameter
from minidist.optim.optimizer import Optimizer
from minidist.parallel.blocks import blocks_of, one_block
from minidist.parallel.data_parallel.data_parallel import DataParallel
from minidist.parallel.gradient_sync import Replicas
from minidist.parallel.method import Method
from minidist.parallel.shared_parameters import shared_by_blocks
from minidist.parallel.zero.accumulated import ReduceScatterUnits
from minidist.parallel.zero.stage1 import OverlappedShards
from minidist.parallel.zero.units import (
    Slices,
    Unit,
    cut_blocks,
    extent,
    in_a_row,
    owned_by_rank,
    shared_slices,
)

Hook = Callable[[int], object]  # called with a unit's number


class ReduceScatterSlots(OverlappedShards):
    """ZeRO stage 2 with gradient memory for two blocks. It runs the model's blocks itself.

    ``before_forward`` and ``before_backward`` are called with a unit's number, before its block
    computes: stage 3 gathers parameters there.
    """

    hooks_forward = True

    def __init__(
        self, before_forward: Hook | None = None, before_backward: Hook | None = None
    ) -> None:
        self.hook_forward, self.hook_backward = before_forward, before_backward

    def allocate(self, seed: int) -> None:
        model = self.model
        self.blocks = list(blocks_of(model).values())
        self.shared_names = shared_by_blocks(model)
        block_slices, self.unit_of = cut_blocks(model, self.shared_names)
        xp = arrays.module()
        self.in_blocks: list[Unit] = []  # one for each block that has parameters, in order
        shared: dict[str, Parameter] = {}
        for number in range(len(self.blocks)):
            part = one_block(model, number).init(seed)  # one block in memory at a time
            named = part.trained()
            shared |= {name: p for name, p in named.items() if name in self.shared_names}
            if number in self.unit_of:
                slices = block_slices[self.unit_of[number]]
                self.in_blocks.append(self.make_unit({n: named[n] for n in slices}, slices))
        self.shared = []  # parameters that several blocks use: one unit, if there are any
        if self.shared_names:
            shared = {name: shared[name] for name in self.shared_names}
            self.shared = [self.make_unit(shared, in_a_row(shared))]
        self.units = [*self.in_blocks, *self.shared]
        self.frozen = [parameter.data for parameter in model.frozen().values()]
        dtype = arrays.default_dtype()
        largest = max((unit.size for unit in self.in_blocks), default=0)
        self.slots = [xp.zeros(largest, dtype) for _ in range(min(2, len(self.in_blocks)))]
        for index, unit in enumerate(self.in_blocks):
            unit.buffer = self.slots[index % 2][: unit.size]
        for unit in self.shared:
            unit.buffer = xp.zeros(unit.size, dtype)
        for unit in self.units:
            unit.point("data", unit.data)
            unit.point("grad", unit.buffer)
            for parameter in unit.parameters.values():
                parameter.on_ready.append(partial(self.check_in_time, unit))

    def make_unit(self, named: dict[str, Parameter], slices: Slices) -> Unit:
        """Move these parameters into one flat array, as a unit with this rank's shard of it."""
        assert self.comm is not None
        shards = ring.chunks(sum(parameter.size for parameter in named.values()), self.comm.size)
        own = shards[self.comm.rank]
        xp, dtype = arrays.module(), arrays.default_dtype()
        data = xp.empty(shards[-1].stop, dtype)
        for name, parameter in named.items():
            data[slices[name]] = parameter.data.reshape(-1)
        rule = self.optimizer.part(slices, own.start, self.sum_numbers)
        grad = xp.zeros(own.stop - own.start, dtype)
        return Unit(named, slices, shards, own, rule, data[own], grad, data)

    @property
    def itemsize(self) -> int:
        return self.units[0].grad.dtype.itemsize

    def begin(self, step: int) -> None:
        self.step = step
        for unit in self.shared:
            self.clear(unit)

    def forward(self, x: Any) -> Tensor:
        """The model's output; registers a hook before each block's backward."""
        x = as_tensor(x)
        for number, block in enumerate(self.blocks):
            index = self.unit_of.get(number)
            if index is not None and self.hook_forward is not None:
                self.hook_forward(index)
            x = block(x)
            if index is not None and x.requires_grad:
                x.register_hook(partial(self.before_backward, index))
        return x

    def before_backward(self, index: int, grad: Array) -> None:
        """Called before the backward of block ``index``: sends the gradients of the next one."""
        if index + 1 < len(self.in_blocks):
            self.reduce(self.in_blocks[index + 1])
        if index + 2 < len(self.in_blocks):
            self.wait_for_gradients(self.in_blocks[index + 2])  # its memory is needed now
        self.clear(self.in_blocks[index])
        if self.hook_backward is not None:
            self.hook_backward(index)

    def clear(self, unit: Unit) -> None:
        unit.buffer.fill(0)
        unit.accumulating = True
        for parameter in unit.parameters.values():
            parameter.zeroed = True

    def check_in_time(self, unit: Unit, parameter: Parameter) -> None:
        """Raise RuntimeError for a gradient that arrives after its block's gradients were sent.

        It would be lost, and would change the block that uses the slot now.
        """
        if not unit.accumulating:
            raise RuntimeError(
                f"{parameter.name} got a gradient after its block's backward was over: ZeRO stages "
                "2 and 3 need blocks that compute one after the other; use stage 1"
            )

    def finish(self) -> float:
        for unit in [*self.in_blocks[:1], *self.shared]:
            self.reduce(unit)
        return super().finish()

    def arrays(self) -> dict[str, list[Array]]:
        return {
            "parameters": [unit.data for unit in self.units] + self.frozen,
            "gradients": [
                *(unit.grad for unit in self.units),
                *self.slots,
                *(unit.buffer for unit in self.shared),
            ],
            "optimizer": self.optimizer.arrays(),
        }

    # The formulas

    def unit_slices(self, of: Replicas) -> list[Slices]:
        return [*cut_blocks(of.model, shared_by_blocks(of.model))[0], *shared_slices(of.model)]

    def memory(self, of: Replicas) -> dict[str, list[int]]:
        """Shards; two slots as large as the largest block; whole gradients of shared parameters."""
        in_blocks, _ = cut_blocks(of.model, shared_by_blocks(of.model))
        shared = shared_slices(of.model)
        slots = min(2, len(in_blocks)) * max((extent(unit) for unit in in_blocks), default=0)
        slots += sum(extent(unit) for unit in shared)
        owned = owned_by_rank([extent(unit) for unit in [*in_blocks, *shared]], of.size)
        return super().memory(of) | {"gradients": [(own + slots) * of.itemsize for own in owned]}

    def plan(self, of: Replicas, seconds: list[float], machine: Machine) -> Series:
        """A reduce-scatter for each unit, while the ranks compute; then the update."""
        return self.plan_overlapped(of, seconds, machine)


class Zero2(DataParallel):
    """Stage 2: gradients are sent to their owners while the backward runs.

    With one microbatch there is gradient memory for two blocks only. Several microbatches
    accumulate in memory for all blocks.
    """

    changeable = Method.changeable  # not microbatches: they decide how much memory is allocated

    def __init__(
        self,
        model: Module,
        loss: Loss,
        optimizer: Optimizer,
        comm: Comm,
        seed: int = 0,
        clip: float | None = None,
        microbatches: int = 1,
    ) -> None:
        sync = ReduceScatterSlots() if microbatches == 1 else ReduceScatterUnits()
        super().__init__(
            model, loss, optimizer, comm, seed, microbatches=microbatches, clip=clip, sync=sync
        )
