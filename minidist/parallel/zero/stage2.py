"""ZeRO, stage 2: a block's gradients go to their owners while the backward still runs.

    backward of block    4    3    2    1
    memory             slot0 slot1 slot0 slot1        two slots take turns
    stream                 ─g4─  ─g3─  ─g2─  ─g1─     each a reduce-scatter

A hook on each block's output runs just before that block goes backward, when the block after it is
through: that one's gradients leave now. The slot is used again two blocks later, when they are at
their owners. See stage1.py for what it costs.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from minidist.collectives import ring
from minidist.collectives.clocks import Clocks
from minidist.comm.comm import Comm, Future
from minidist.comm.machine import Machine
from minidist.data.batches import Batch
from minidist.engine import array as arrays
from minidist.engine.array import Array
from minidist.engine.tensor import Tensor, as_tensor
from minidist.nn.module import Parameter
from minidist.optim.optimizer import Optimizer
from minidist.parallel.method import StepCost, parameter_count
from minidist.parallel.resume import Held
from minidist.parallel.zero.stage1 import Zero1, held_by_rank


@dataclass
class Unit:
    """What is gathered and reduced together: a block's parameters, or those that blocks share."""

    parameters: dict[str, Parameter]
    slices: dict[str, slice]  # of each parameter in the unit
    shards: Sequence[slice]  # of each rank in the unit
    own: slice
    grad: Array  # the sum of this rank's shard
    optimizer: Optimizer
    data: Array  # stage 2: the whole unit; stage 3: this rank's shard
    buffer: Array = None  # where the unit's gradients are made
    gathered: Array = None  # stage 3: where the whole unit is while it is used
    growing: bool = False  # its backward is not over: gradients are still added
    reducing: Future | None = field(default=None, repr=False)
    gathering: Future | None = field(default=None, repr=False)

    @property
    def size(self) -> int:
        return self.shards[-1].stop

    def point(self, attribute: str, memory: Array) -> None:
        """Make every parameter's ``data`` or ``grad`` a view of ``memory``."""
        for name, parameter in self.parameters.items():
            view = memory[self.slices[name]].reshape(parameter.declared)
            setattr(parameter, attribute, view)


class Zero2(Zero1):
    """Stage 2: gradients go to their owners while the backward still runs."""

    def build(self) -> None:
        self.model = self.whole
        self.blocks = list(self.model.blocks.values())
        counts = Counter(id(p) for block in self.blocks for p in set(block.parameters()))
        shared: dict[str, Parameter] = {}
        self.units: list[Unit] = []  # one for each block that has parameters, in order
        self.unit_of: dict[int, int] = {}  # from a block's number to its unit's
        for number in range(len(self.blocks)):
            part = self.model[number : number + 1].init(self.seed)  # one block in memory at a time
            shared |= {n: p for n, p in part.named_parameters().items() if counts[id(p)] > 1}
            named = {n: p for n, p in part.named_parameters().items() if counts[id(p)] == 1}
            if named:
                self.unit_of[number] = len(self.units)
                self.units.append(self.unit(named))
        first = {id(p): name for name, p in reversed(shared.items())}  # one name for each
        self.shared = [self.unit({n: p for n, p in shared.items() if first[id(p)] == n})]
        if not shared:
            self.shared = []
        self.all_units = [*self.units, *self.shared]
        xp, dtype = arrays.module_of(self.all_units[0].grad), self.all_units[0].grad.dtype
        largest = max((unit.size for unit in self.units), default=0)
        self.slots = [xp.zeros(largest, dtype) for _ in range(min(2, len(self.units)))]
        for index, unit in enumerate(self.units):
            unit.buffer = self.slots[index % 2][: unit.size]
        for unit in self.shared:
            unit.buffer = xp.zeros(unit.size, dtype)
        for unit in self.all_units:
            unit.point("grad", unit.buffer)
            for parameter in unit.parameters.values():
                parameter.on_ready.append(partial(self.check_in_time, unit))

    def unit(self, named: dict[str, Parameter]) -> Unit:
        """Move these parameters into one flat array, and give this rank its shard of it."""
        slices, start = {}, 0
        for name, parameter in named.items():
            slices[name] = slice(start, start + parameter.size)
            start += parameter.size
        xp = arrays.module()
        shards = ring.chunks(start, self.comm.size)
        own = shards[self.comm.rank]
        data = xp.empty(start, arrays.default_dtype())
        for name, parameter in named.items():
            data[slices[name]] = parameter.data.reshape(-1)
        optimizer = copy.deepcopy(self.optimizer)  # its rule, with state of its own
        optimizer.bind(slices, start=own.start, reduce=self.sum)
        grad = xp.zeros(own.stop - own.start, data.dtype)
        unit = Unit(named, slices, shards, own, grad, optimizer, data)
        self.settle(unit)
        return unit

    def settle(self, unit: Unit) -> None:
        """Where a unit's parameters live between steps: here, everywhere."""
        unit.point("data", unit.data)

    def step(self, batch: Batch) -> float:
        loss = self.forward_backward(batch.shard(self.comm.rank, self.comm.size))
        with self.comm.step("wait for gradients"):
            for unit in self.all_units:
                self.wait_for_gradients(unit)
        loss = self.sum(np.array([loss]))
        self.clip_shards([unit.grad for unit in self.all_units])
        with self.comm.step("optimizer"):
            for unit in self.all_units:
                unit.optimizer.step(self.own_data(unit), unit.grad)
        self.spread()
        return loss

    def own_data(self, unit: Unit) -> Array:
        return unit.data[unit.own]

    def spread(self) -> None:
        """After the update: every owner sends its part of the parameters to all."""
        for unit in self.all_units:
            ring.all_gather(self.comm, unit.data, unit.shards)

    def forward(self, x: Any) -> Tensor:
        """The model's output; on the way, a hook before each block's backward."""
        x = as_tensor(x)
        for number, block in enumerate(self.blocks):
            index = self.unit_of.get(number)
            if index is not None:
                self.before_forward(index)
            x = block(x)
            if index is not None and x.requires_grad:
                x.register_hook(partial(self.before_backward, index))
        return x

    def forward_backward(self, batch: Batch, before_backward: Any = None) -> float:
        for unit in self.shared:
            self.clear(unit)
        with self.comm.step("forward"):
            loss = self.loss(self.forward(batch.inputs), batch.targets, batch.count)
        with self.comm.step("backward"):
            loss.backward()
            for unit in [*self.units[:1], *self.shared]:
                self.reduce(unit)
        return loss.item()

    def before_forward(self, index: int) -> None:
        """Block ``index`` is about to be computed."""

    def before_backward(self, index: int, grad: Array) -> None:
        """Block ``index`` is about to go backward, and the one after it is through."""
        if index + 1 < len(self.units):
            self.reduce(self.units[index + 1])
        if index + 2 < len(self.units):
            self.wait_for_gradients(self.units[index + 2])  # its memory is needed now
        self.clear(self.units[index])

    def clear(self, unit: Unit) -> None:
        unit.buffer.fill(0)
        unit.growing = True
        for parameter in unit.parameters.values():
            parameter.fresh = True

    def reduce(self, unit: Unit) -> None:
        """Start to sum the unit's gradients at their owners."""

        def run(stream: Comm) -> None:
            ring.reduce_scatter(stream, unit.buffer, parts=unit.shards)
            unit.grad[...] = unit.buffer[unit.own]

        unit.growing = False
        unit.reducing = self.comm.spawn(run)

    def check_in_time(self, unit: Unit, parameter: Parameter) -> None:
        """A gradient that comes when its block has been sent would be lost, and corrupt another."""
        if not unit.growing:
            raise RuntimeError(
                f"{parameter.name} got a gradient after its block's backward was over: ZeRO stages "
                "2 and 3 need blocks that are computed one after the other; use stage 1"
            )

    def wait_for_gradients(self, unit: Unit) -> None:
        if unit.reducing is not None:
            unit.reducing.wait()
            unit.reducing = None

    def held(self) -> list[Held]:
        return [
            Held(unit.parameters, unit.slices, unit.optimizer, self.own_data(unit), unit.shards)
            for unit in self.all_units
        ]

    def holds(self) -> dict[str, list[Array]]:
        states = [unit.optimizer.state.values() for unit in self.all_units]
        return {
            "parameters": [unit.data for unit in self.all_units],
            "gradients": [
                *(unit.grad for unit in self.all_units),
                *self.slots,
                *(unit.buffer for unit in self.shared),
            ],
            "optimizer": [array for state in states for array in state],
        }

    @property
    def itemsize(self) -> int:
        return self.all_units[0].grad.dtype.itemsize

    def cost(self, batch: Batch, machine: Machine) -> StepCost:
        """The plan of a step, replayed on two clocks a rank: computing, and the stream."""
        main, stream = Clocks(machine, self.comm.size), Clocks(machine, self.comm.size)
        work = [self.block_seconds(batch, machine, rank) for rank in range(self.comm.size)]
        reduced: dict[int, list[float]] = {}  # when each unit's reduce-scatter is over
        blocks = range(len(self.blocks))

        def reduce(unit: Unit) -> list[float]:
            stream.wait_for(main.now)
            stream.reduce_scatter(unit.shards, self.itemsize)
            return list(stream.now)

        self.plan_forward(main, stream, work)
        for number in reversed(blocks):
            index = self.unit_of.get(number)
            if index is not None:
                if index + 1 < len(self.units):
                    reduced[index + 1] = reduce(self.units[index + 1])
                if index + 2 < len(self.units):
                    main.wait_for(reduced[index + 2])
                self.plan_backward(main, stream, index)
            main.compute([backward[number] for _, backward in work])
        for unit in [*self.units[:1], *self.shared]:
            reduce(unit)
        main.wait_for(stream.now)
        self.sum_numbers(main, [len(unit.slices) for unit in self.all_units])
        self.plan_spread(main)
        shards = [unit.shards for unit in self.all_units]
        return StepCost(
            messages=[sum(pair) for pair in zip(main.messages, stream.messages, strict=True)],
            nbytes=[sum(pair) for pair in zip(main.nbytes, stream.nbytes, strict=True)],
            peak_bytes={
                "parameters": self.parameter_bytes(),
                "gradients": self.sharded_bytes(),
                "optimizer": self.optimizer_bytes(shards),
                "activations": self.activation_bytes(batch),
            },
            busy=main.busy,  # the stream adds up meanwhile
            seconds=max(main.now),
        )

    def plan_forward(self, main: Clocks, stream: Clocks, work: list) -> None:
        main.compute([sum(forward) for forward, _ in work])

    def plan_backward(self, main: Clocks, stream: Clocks, index: int) -> None:
        """Nothing but gradients is on the move."""

    def plan_spread(self, main: Clocks) -> None:
        for unit in self.all_units:
            main.all_gather(unit.shards, self.itemsize)

    def parameter_bytes(self) -> list[int]:
        return [parameter_count(self.whole) * self.itemsize] * self.comm.size

    def sharded_bytes(self) -> list[int]:
        """Shards, two slots as large as the largest block, and whole what blocks share."""
        slots = sum(slot.size for slot in self.slots) + sum(unit.size for unit in self.shared)
        held = held_by_rank([unit.shards for unit in self.all_units])
        return [(own + slots) * self.itemsize for own in held]

    def block_seconds(
        self, batch: Batch, machine: Machine, rank: int
    ) -> tuple[list[float], list[float]]:
        """Seconds of each block's forward and backward on ``rank``."""
        forward, backward, input_grad = [], [], False
        for block, cost in zip(self.blocks, self.whole.costs(self.shape(batch, rank)), strict=True):
            flops = cost.weight_flops + (cost.input_flops if input_grad else 0)
            forward.append(machine.compute(cost.flops, rank))
            backward.append(machine.compute(flops, rank))
            input_grad = input_grad or bool(block.named_parameters())
        return forward, backward
