"""ZeRO stage 3 (fully sharded): a rank has a block's whole parameters only while it uses them.

    forward of block      1    2    3    4   backward   4    3    2    1
    stream          ─1─ ─2─  ─3─  ─4─               ─4─ ─3─  ─2─  ─1─       each an all-gather
    memory          slot0 slot1 slot0 slot1         slot1 slot0 ...

While a block computes, the next one is gathered into the other slot. Gradients are sent on the same
stream, by the part in stage2.py. The cost is in stage1.py. Rajbhandari et al., "ZeRO", arXiv
1910.02054, section 5.3.
"""

from __future__ import annotations

import numpy as np

from minidist.collectives import ring
from minidist.collectives.series import Series
from minidist.comm.comm import Comm
from minidist.comm.machine import Machine
from minidist.data.batches import Batch, Dataset
from minidist.engine import array as arrays
from minidist.engine.array import Array
from minidist.engine.tensor import Tensor
from minidist.nn.loss import Loss
from minidist.nn.module import Module
from minidist.optim.optimizer import Optimizer
from minidist.parallel.method import Method, StepCost
from minidist.parallel.model_costs import peak_bytes, shape_of, training_seconds
from minidist.parallel.shares import Share
from minidist.parallel.state import OptimizerShard, State
from minidist.parallel.zero.stage1 import plan_numbers
from minidist.parallel.zero.stage2 import ReduceScatterSlots
from minidist.parallel.zero.units import Unit, cut_blocks, extent, shared_slices

SHARDED = (
    "each rank has only a shard of it, and gathers it while a step needs it (ZeRO 3): call "
    "method.evaluate(dataset), or make a model of all parameters, "
    "model.init().load(method.parameters() | method.buffers())"
)


class Zero3(Method):
    """Stage 3: every rank keeps only its shard of each block's parameters."""

    refuses = Method.refuses | {
        "microbatches": "there is gradient memory for two blocks only, so gradients cannot "
        "accumulate: use Zero2"
    }

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
        super().__init__(model, loss, optimizer, comm, seed, microbatches, clip)
        self.model = model
        self.gradients = ReduceScatterSlots(self.before_forward, self.before_backward)
        self.gradients.bind(model, optimizer, comm, seed, clips=clip is not None)
        self.units, self.in_blocks = self.gradients.units, self.gradients.in_blocks
        self.slots = [arrays.module_of(slot).zeros_like(slot) for slot in self.gradients.slots]
        self.same_slot = {id(u): self.in_blocks[i % 2 :: 2] for i, u in enumerate(self.in_blocks)}
        for index, unit in enumerate(self.in_blocks):
            unit.gathered = self.slots[index % 2][: unit.size]
        for unit in self.gradients.shared:
            unit.gathered = arrays.module_of(unit.data).zeros_like(unit.data)
        for unit in self.units:
            unit.shard = unit.shard.copy()  # so that the whole array can be freed
            unit.data = None
        self.release()

    def train_on(self, batch: Batch) -> float:
        gradients = self.gradients
        gradients.begin(self.steps)
        shard = batch.shard(self.comm.rank, self.comm.size)
        self.forward_backward(shard, before_backward=gradients.last_backward)
        loss = gradients.finish()
        gradients.clip(self.clip)
        gradients.step_shards()
        self.release()
        return loss

    def changed(self, name: str) -> None:
        self.gradients.clips(self.clip is not None)

    def forward(self, inputs: Array) -> Tensor:
        for unit in self.gradients.shared:
            self.wait_for_parameters(unit)
        return self.gradients.forward(inputs)

    def before_forward(self, index: int) -> None:
        """Wait for the parameters of block ``index``, and start to gather the next block's."""
        self.wait_for_parameters(self.in_blocks[index])
        if index + 1 < len(self.in_blocks):
            self.gather(self.in_blocks[index + 1])

    def before_backward(self, index: int) -> None:
        self.wait_for_parameters(self.in_blocks[index])
        if index > 0:
            self.gather(self.in_blocks[index - 1])

    def gather(self, unit: Unit) -> None:
        """Start to gather a unit, unless that has started already."""

        def run(stream: Comm) -> None:
            unit.gathered[unit.own] = unit.shard
            ring.all_gather(stream, unit.gathered, unit.shards)

        if unit.gathering is None:
            for other in self.same_slot.get(id(unit), []):
                if other.readable:
                    other.make_unreadable(SHARDED)  # this unit is gathered into the same memory
            unit.gathering = self.comm.spawn(run)

    def wait_for_parameters(self, unit: Unit) -> None:
        self.gather(unit)
        assert unit.gathering is not None
        with self.comm.step("wait for parameters"):
            unit.gathering.wait()
        unit.gathering = None
        unit.make_readable(unit.gathered)

    def release(self) -> None:
        """Make whole parameters unreadable: after a step, those in the slots are out of date."""
        for unit in self.units:
            if unit.readable:
                unit.make_unreadable(SHARDED)

    # What is kept

    def parameters(self) -> dict[str, np.ndarray]:
        """The whole model on the host, gathered unit by unit."""
        found: dict[str, np.ndarray] = {}
        for unit in self.units:
            self.wait_for_parameters(unit)
            for name, parameter in unit.parameters.items():
                found[name] = arrays.to_host(parameter.data).copy()
        self.release()
        return self.in_order(found)

    def evaluate(self, dataset: Dataset, chunk: int = 1000) -> tuple[float, float]:
        try:
            return super().evaluate(dataset, chunk)
        finally:
            self.release()

    def load_parameters(self, by_name: State) -> None:
        for unit in self.units:
            unit.shard[...] = unit.optimizer_shard(self.optimizer).cut(self.comm, by_name)
        for name, buffer in (self.whole.frozen() | self.whole.named_buffers()).items():
            buffer.data[...] = arrays.module_of(buffer.data).asarray(by_name[name])

    def optimizer_shards(self) -> list[OptimizerShard]:
        return self.gradients.optimizer_shards()

    def state_shares(self) -> list[Share]:
        return self.own_shares()

    def arrays(self) -> dict[str, list[Array]]:
        shards = [unit.shard for unit in self.units]
        whole = [*self.slots, *(unit.gathered for unit in self.gradients.shared)]
        return self.gradients.arrays() | {"parameters": shards + whole + self.gradients.frozen}

    @property
    def itemsize(self) -> int:
        return self.gradients.itemsize

    # The formula

    def cost(self, batch: Batch, machine: Machine) -> StepCost:
        """Two all-gathers of each block, one of shared parameters; one reduce-scatter of each.

        The time is not predicted: how much is overlapped, only the simulation knows.
        """
        ranks = range(self.comm.size)
        of, shards = self.gradients.replicas, [batch.shard(r, self.comm.size) for r in ranks]
        in_blocks = cut_blocks(self.whole, self.gradients.shared_names)[0]
        shared, memory = shared_slices(self.whole), self.gradients.memory(of)
        series = Series(machine, of.size)
        for unit in (*shared, *in_blocks, *in_blocks):
            series.all_gather(extent(unit), of.itemsize)
        for unit in (*in_blocks, *shared):
            series.reduce_scatter(extent(unit), of.itemsize)
        # The reductions overlap with these.
        series.busy = [training_seconds(self.whole, [shards[r]], machine, r) for r in ranks]
        plan_numbers(series, of, [len(unit) for unit in (*in_blocks, *shared)])
        return StepCost(
            messages=series.messages,
            nbytes=series.nbytes,
            peak_bytes={
                # As the gradients: shards and two slots; frozen parameters are on every rank.
                "parameters": [n + of.frozen_bytes for n in memory["gradients"]],
                "gradients": memory["gradients"],
                "optimizer": memory["optimizer"],
                "activations": [
                    peak_bytes(self.whole, shape_of(shard), self.itemsize, self.loss)
                    for shard in shards
                ],
            },
            busy=series.busy,
            seconds=None,
        )
