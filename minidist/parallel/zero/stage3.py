"""ZeRO, stage 3, or fully sharded: a block's parameters are here only while it is used.

    forward of block      1    2    3    4   backward   4    3    2    1
    stream          ─1─ ─2─  ─3─  ─4─               ─4─ ─3─  ─2─  ─1─       each an all-gather
    memory          slot0 slot1 slot0 slot1         slot1 slot0 ...

While a block computes, the next one arrives in the other slot. See stage1.py for what it costs, and
stage2.py for the gradients, which travel on the same stream.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minidist.collectives import ring
from minidist.collectives.clocks import Clocks
from minidist.comm.comm import Comm
from minidist.engine import array as arrays
from minidist.engine.array import Array
from minidist.engine.tensor import Tensor
from minidist.parallel.resume import State
from minidist.parallel.zero.stage2 import Unit, Zero2


class Zero3(Zero2):
    """Stage 3, also called fully sharded: a block's parameters are here only while it is used."""

    def build(self) -> None:
        super().build()
        xp, dtype = arrays.module_of(self.all_units[0].grad), self.all_units[0].grad.dtype
        self.places = [xp.zeros(slot.size, dtype) for slot in self.slots]
        for index, unit in enumerate(self.units):
            unit.gathered = self.places[index % 2][: unit.size]
        for unit in self.shared:
            unit.gathered = xp.zeros(unit.size, dtype)
        for unit in self.all_units:
            unit.point("data", unit.gathered)

    def settle(self, unit: Unit) -> None:
        """Between steps a unit lives in shards: nobody keeps the whole."""
        unit.data = unit.data[unit.own].copy()

    def own_data(self, unit: Unit) -> Array:
        return unit.data

    def spread(self) -> None:
        """Parameters are sent when they are needed, not before."""

    def gather(self, unit: Unit) -> None:
        """Start to collect a whole unit, unless that is under way."""

        def run(stream: Comm) -> None:
            unit.gathered[unit.own] = unit.data
            ring.all_gather(stream, unit.gathered, unit.shards)

        if unit.gathering is None:
            unit.gathering = self.comm.spawn(run)

    def wait_for_parameters(self, unit: Unit) -> None:
        self.gather(unit)
        assert unit.gathering is not None
        with self.comm.step("wait for parameters"):
            unit.gathering.wait()
        unit.gathering = None

    def forward(self, x: Any) -> Tensor:
        for unit in self.shared:
            self.wait_for_parameters(unit)
        return super().forward(x)

    def before_forward(self, index: int) -> None:
        self.wait_for_parameters(self.units[index])
        if index + 1 < len(self.units):
            self.gather(self.units[index + 1])

    def before_backward(self, index: int, grad: Array) -> None:
        super().before_backward(index, grad)
        self.wait_for_parameters(self.units[index])
        if index > 0:
            self.gather(self.units[index - 1])

    def parameters(self) -> dict[str, np.ndarray]:
        """Gathered unit by unit; on the host."""
        held: dict[str, np.ndarray] = {}
        for unit in self.all_units:
            self.wait_for_parameters(unit)
            for name, parameter in unit.parameters.items():
                held[name] = arrays.to_host(parameter.data).copy()
        names = [*self.whole.named_parameters(), *self.whole.named_buffers()]
        held |= {n: arrays.to_host(b.data).copy() for n, b in self.whole.named_buffers().items()}
        return {name: held[name] for name in names}

    def load_parameters(self, by_name: State) -> None:
        for held in self.held():
            held.data[...] = held.own(self.comm, by_name)
        for name, buffer in self.whole.named_buffers().items():
            buffer.data[...] = arrays.module_of(buffer.data).asarray(by_name[name])

    def holds(self) -> dict[str, list[Array]]:
        held = super().holds()
        held["parameters"] += [*self.places, *(unit.gathered for unit in self.shared)]
        return held

    def plan_forward(self, main: Clocks, stream: Clocks, work: list) -> None:
        self.arriving: dict[int, list[float]] = {}
        for unit in self.shared:
            stream.wait_for(main.now)
            stream.all_gather(unit.shards, self.itemsize)
            main.wait_for(stream.now)
        for number in range(len(self.blocks)):
            index = self.unit_of.get(number)
            if index is not None:
                self.plan_gather(main, stream, index, index + 1)
            main.compute([forward[number] for forward, _ in work])

    def plan_backward(self, main: Clocks, stream: Clocks, index: int) -> None:
        self.plan_gather(main, stream, index, index - 1)

    def plan_spread(self, main: Clocks) -> None:
        """Nothing to send."""

    def plan_gather(self, main: Clocks, stream: Clocks, index: int, following: int) -> None:
        """Wait for a unit, asked for now if not before; then ask for the one to come."""
        for wanted in (index, following):
            if 0 <= wanted < len(self.units) and wanted not in self.arriving:
                stream.wait_for(main.now)
                stream.all_gather(self.units[wanted].shards, self.itemsize)
                self.arriving[wanted] = list(stream.now)
            if wanted == index:
                main.wait_for(self.arriving.pop(index))

    def parameter_bytes(self) -> list[int]:
        return self.sharded_bytes()
