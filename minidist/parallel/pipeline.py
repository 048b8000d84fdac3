"""Pipeline parallelism: every rank holds a stage, a few consecutive blocks of the model.

    microbatch → stage 0 → activations → stage 1 → activations → stage 2 → loss
                 rank 0  ←  gradients  ← rank 1  ←  gradients  ← rank 2

A stage receives its input, computes, and sends its output on; backward the same in reverse, since
the backward of a send is a receive. To keep all stages at work the batch is cut into
microbatches; in which order a stage works on them is its schedule (``schedules.py``), and this
file runs any schedule.

A rank sends activations and their gradients only, never parameters: for each microbatch of b rows
and a boundary of h values, b·h elements to the right and as many to the left, and one element,
the loss, at the end. Memory: a stage's own parameters, gradients and optimizer state, and what the
schedule keeps of activations. Time: see ``schedules.price``.

Huang et al., "GPipe", arXiv 1811.06965; Narayanan et al., arXiv 2104.04473, section 2.2.
"""

from __future__ import annotations

import numpy as np

from minidist import array as arrays
from minidist.array import Array
from minidist.collectives import central
from minidist.comm.comm import Comm
from minidist.comm.machine import Machine
from minidist.data.batches import Batch
from minidist.nn.layers import Sequential
from minidist.nn.module import Module, Shape
from minidist.optim.optimizer import Optimizer
from minidist.parallel.method import (
    Method,
    StepCost,
    parameter_count,
    saved_bytes,
    training_flops,
)
from minidist.parallel.schedules import (
    SCHEDULES,
    Backward,
    Forward,
    Instruction,
    Recv,
    Send,
    Step,
    price,
)
from minidist.tensor import Tensor


class Pipeline(Method):
    """Rank r is stage r. ``schedule`` is a name in ``SCHEDULES``.

    Stages are cut as even in FLOPs as they can be, or by hand: ``bounds=[(0, 3), (3, 8)]`` gives
    blocks 0 to 2 to the first stage and 3 to 7 to the second.
    """

    def __init__(
        self,
        model: Sequential,
        loss: Module,
        optimizer: Optimizer,
        comm: Comm,
        seed: int = 0,
        schedule: str = "gpipe",
        microbatches: int = 4,
        bounds: list[tuple[int, int]] | None = None,
    ) -> None:
        super().__init__(model, loss, optimizer, comm, seed)
        if schedule not in SCHEDULES:
            raise ValueError(f"unknown schedule {schedule!r}: choose one of {', '.join(SCHEDULES)}")
        if microbatches < 1:
            raise ValueError(f"a pipeline needs at least one microbatch, not {microbatches}")
        self.schedule = SCHEDULES[schedule]
        self.microbatches = microbatches
        self.bounds = bounds or cut(block_flops(model), comm.size)
        self._check_bounds()
        self.stages = [model[start:stop] for start, stop in self.bounds]
        self.model = self.stages[comm.rank].init(seed)  # only this stage is given memory

    def _check_bounds(self) -> None:
        ends = [0, *(stop for _, stop in self.bounds)]
        starts = [*(start for start, _ in self.bounds), len(self.whole)]
        if ends != starts or len(self.bounds) != self.comm.size:
            raise ValueError(
                f"bounds {self.bounds} must cut {len(self.whole)} blocks into consecutive "
                f"(start, stop) stages, one for each of {self.comm.size} ranks"
            )

    def step(self, batch: Batch) -> float:
        comm, last = self.comm, self.comm.size - 1
        parts = batch.microbatches(self.microbatches)
        shapes = self.boundary_shapes(batch)
        inputs: dict[int, Tensor] = {}  # of this stage, by microbatch
        outputs: dict[int, Tensor] = {}  # of this stage; the loss on the last
        gradients: dict[int, Array] = {}  # of the outputs
        loss = np.zeros(1)
        self.model.zero_grad()

        for instruction in self.schedule(comm.rank, comm.size, self.microbatches):
            match instruction:
                case Recv("activation", microbatch, peer):
                    inputs[microbatch] = self.empty(shapes[comm.rank][microbatch])
                    with comm.step(f"receive activation {microbatch}"):
                        comm.recv(inputs[microbatch].data, peer)
                case Forward(microbatch):
                    with comm.step(f"forward {microbatch}"):
                        part = parts[microbatch]
                        x = inputs[microbatch] if comm.rank > 0 else part.inputs
                        y = self.model(x)
                        if comm.rank == last:
                            y = self.loss(y, part.targets, part.count)
                            loss += y.item()
                        outputs[microbatch] = y
                case Send("activation", microbatch, peer):
                    with comm.step(f"send activation {microbatch}"):
                        comm.send(contiguous(outputs[microbatch].data), peer)
                case Recv("gradient", microbatch, peer):
                    gradients[microbatch] = self.empty(shapes[comm.rank + 1][microbatch]).data
                    with comm.step(f"receive gradient {microbatch}"):
                        comm.recv(gradients[microbatch], peer)
                case Backward(microbatch):
                    with comm.step(f"backward {microbatch}"):
                        y = outputs.pop(microbatch)
                        if y.requires_grad:  # no: a first stage with nothing to train
                            y.backward(gradients.pop(microbatch, None))
                case Send("gradient", microbatch, peer):
                    with comm.step(f"send gradient {microbatch}"):
                        comm.send(contiguous(inputs.pop(microbatch).grad), peer)
                case Step():
                    self.update()
                case Recv("loss", _, peer):
                    comm.recv(loss, peer)
                case Send("loss", _, peer):
                    comm.send(loss, peer)
        return float(loss[0])

    def empty(self, shape: Shape) -> Tensor:
        """A tensor to receive into, that wants a gradient."""
        flat = self.model.flat.data
        return Tensor(arrays.module_of(flat).empty(shape, flat.dtype), requires_grad=True)

    def boundary_shapes(self, batch: Batch) -> list[list[Shape]]:
        """The shape of each stage's input, by stage and microbatch; no message needs to tell."""
        shapes = []
        for part in batch.microbatches(self.microbatches):
            costs = self.whole.costs((len(part), *batch.dataset.input_shape))
            first: Shape = (len(part), *batch.dataset.input_shape)
            shapes.append([first, *(costs[start - 1].shape for start, _ in self.bounds[1:])])
        return [list(stage) for stage in zip(*shapes, strict=True)]

    def parameters(self) -> dict[str, np.ndarray]:
        """Every stage sends its own to all others."""
        full: dict[str, np.ndarray] = {}
        flat = self.model.flat.data
        for rank, stage in enumerate(self.stages):
            data = (
                flat.copy()
                if rank == self.comm.rank
                else arrays.module_of(flat).empty(parameter_count(stage), flat.dtype)
            )
            central.broadcast(self.comm, data, root=rank)
            start = 0
            for name, parameter in stage.named_parameters().items():
                part = data[start : start + parameter.size]
                full[name] = arrays.to_host(part).reshape(parameter.declared)
                start += parameter.size
        return full

    def cost(self, batch: Batch, machine: Machine) -> StepCost:
        """Priced from the schedule itself."""
        shapes = self.boundary_shapes(batch)
        last = self.comm.size - 1

        def compute(stage: int, instruction: Instruction) -> float:
            if not isinstance(instruction, (Forward, Backward)):
                return 0.0
            shape = shapes[stage][instruction.microbatch]
            forward, backward = training_flops(self.stages[stage], shape, input_grad=stage > 0)
            flops = forward if isinstance(instruction, Forward) else backward
            return machine.compute(flops, stage)

        def nbytes(stage: int, send: Send) -> int:
            if send.what == "loss":
                return 8
            boundary = max(stage, send.peer)
            return int(np.prod(shapes[boundary][send.microbatch])) * self.itemsize

        def saved(stage: int, microbatch: int) -> int:
            loss = self.loss if stage == last else None
            return saved_bytes(self.stages[stage], shapes[stage][microbatch], self.itemsize, loss)

        priced = price(
            self.schedule,
            self.comm.size,
            self.microbatches,
            compute=compute,
            nbytes=nbytes,
            message=machine.message,
            saved=saved,
        )
        own = [parameter_count(stage) * self.itemsize for stage in self.stages]
        return StepCost(
            messages=priced.messages,
            nbytes=priced.nbytes,
            peak_bytes={
                "parameters": own,
                "gradients": own,
                "optimizer": [len(self.optimizer.slots) * n for n in own],
                "activations": priced.peak_saved,
            },
            busy=priced.busy,
            seconds=priced.seconds,
        )


def contiguous(array: Array) -> Array:
    """``array`` itself, or a copy if its elements do not lie in a row."""
    return arrays.module_of(array).ascontiguousarray(array)


def block_flops(model: Sequential) -> list[int]:
    """Forward FLOPs of every block for one sample: what stages are cut by."""
    if model.input_shape is None:
        raise ValueError(
            "a pipeline cuts the model by FLOPs and does not know its input: build it as "
            "Sequential(..., input_shape=(...)), or cut by hand with bounds=[(start, stop), ...]"
        )
    return [cost.flops for cost in model.costs((1, *model.input_shape))]


def cut(costs: list[int], stages: int) -> list[tuple[int, int]]:
    """Cut blocks of these costs into consecutive stages, as even as can be: (start, stop) each.

    Least sum of squares, by dynamic programming; a block that costs nothing stays with the one
    before it.
    """
    if stages > len(costs):
        raise ValueError(
            f"{stages} stages need as many blocks, and the model has {len(costs)}: "
            "use fewer ranks or a deeper model"
        )
    total = [0]
    for cost in costs:
        total.append(total[-1] + cost)
    # best[stop]: (cost, starts) of the best cut of the first ``stop`` blocks so far
    best: dict[int, tuple[int, list[int]]] = {0: (0, [])}
    for _ in range(stages):
        following: dict[int, tuple[int, list[int]]] = {}
        for start, (cost, starts) in best.items():
            for stop in range(start + 1, len(costs) + 1):
                candidate = (cost + (total[stop] - total[start]) ** 2, [*starts, start])
                if stop not in following or (candidate[0], [-s for s in candidate[1]]) < (
                    following[stop][0],
                    [-s for s in following[stop][1]],
                ):
                    following[stop] = candidate
        best = following
    starts = best[len(costs)][1]
    return list(zip(starts, [*starts[1:], len(costs)], strict=True))
