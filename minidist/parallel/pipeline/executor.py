"""Run a pipeline's program: one step of one rank, instruction by instruction.

Messages overlap with computations: a receive is posted one computation before the message is
needed, and a send is waited for only before its buffer is reused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from minidist.comm.comm import Request
from minidist.data.batches import Batch
from minidist.engine import array as arrays
from minidist.engine.array import Array, read
from minidist.engine.mode import keep_buffers
from minidist.engine.tensor import Deferred, Tensor, defer_weight_gradients, no_grad
from minidist.inspect.meter import saved_for_backward
from minidist.nn.module import Shape
from minidist.parallel.pipeline.instructions import (
    Backward,
    Forward,
    InputGradient,
    Post,
    Recv,
    Reduce,
    Send,
    Step,
    WeightGradient,
)
from minidist.parallel.pipeline.stage_sums import OwnStage, StageSums


class Executor(StageSums):
    """One step of one rank: the microbatches in progress, and a function for each instruction."""

    def __init__(self, stage: OwnStage, batches: Sequence[Batch]) -> None:
        self.stage, self.layout, self.comm = stage, stage.layout, stage.pipe
        self.last = len(self.layout.parts) - 1
        self.batches = list(batches)
        self.shapes = [self.layout.shapes_of(batch) for batch in batches]
        self.completing = self.layout.completing(stage.index)
        self.inputs: dict[tuple[int, int], Tensor] = {}  # by microbatch and part
        self.outputs: dict[tuple[int, int], Tensor] = {}  # the loss in the last part
        self.gradients: dict[tuple[int, int], Array] = {}  # of a part's input
        self.deferred: dict[tuple[int, int], Deferred] = {}
        self.kept: dict[tuple[int, int], ExitStack] = {}  # inputs kept for recomputation
        self.in_use: dict[tuple[int, int], list[Array]] = {}  # buffers, free after the backward
        self.receives: dict[tuple[str, int, int], tuple[Request, Array]] = {}  # posted
        self.sends: dict[tuple[str, int, int], Request] = {}  # not complete yet
        self.separated = list(stage.separated)  # not added yet
        self.to_sum = set(self.layout.summed)  # not summed over the tensor axis yet
        self.loss = np.zeros(1)
        self.norm: float | None = None  # of the whole gradient, before it is clipped
        self.completed = False

    def do(self, instruction: Any) -> None:
        if instruction in self.completing:
            chunk = self.completing[instruction]
            self.stage.sync.last_backward(part=self.layout.chunk_range(self.stage.index, chunk))
        match instruction:
            case Post(what, microbatch, peer, part):
                self.post(what, microbatch, peer, part)
            case Recv(what, microbatch, _, part):
                self.recv(what, microbatch, part)
            case Send(what, microbatch, peer, part):
                self.send(what, microbatch, peer, part)
            case Forward(microbatch, chunk):
                with self.traced("forward", microbatch, chunk):
                    self.forward(microbatch, self.part(chunk))
            case Backward(microbatch, chunk):
                with self.traced("backward", microbatch, chunk):
                    self.backward(microbatch, self.part(chunk))
                    self.free(microbatch, self.part(chunk))
            case InputGradient(microbatch, chunk):
                with self.traced("input-gradient", microbatch, chunk):
                    with defer_weight_gradients() as queue:
                        self.backward(microbatch, self.part(chunk))
                    self.deferred[microbatch, self.part(chunk)] = queue
            case WeightGradient(microbatch, chunk):
                with self.traced("weight-gradient", microbatch, chunk):
                    self.deferred.pop((microbatch, self.part(chunk))).run()
                    self.free(microbatch, self.part(chunk))
            case Reduce(what, chunk):
                self.reduce(what, chunk)
            case Step():
                self.update()

    # Computing

    def part(self, chunk: int) -> int:
        return self.layout.part(self.stage.index, chunk)

    def traced(self, what: str, microbatch: int, chunk: int) -> Any:
        """Name the computation in the trace; plots of timelines read this name."""
        of_chunk = f" chunk {chunk}" if self.layout.schedule.chunks > 1 else ""
        return self.comm.step(f"{what} {microbatch}{of_chunk}")

    def compute(self, microbatch: int, part: int) -> Tensor:
        """The output of a part's layers on a microbatch; of the last part, the loss."""
        batch = self.batches[microbatch]
        x = self.inputs[microbatch, part] if part > 0 else batch.inputs
        with self.stage.draws_of(batch):
            y = self.stage.sync.run(self.layout.parts[part], x)
        if part < self.last:
            return y
        return self.stage.loss(y, batch.targets, batch.count(self.stage.loss))

    def forward(self, microbatch: int, part: int) -> None:
        place = microbatch, part
        if self.layout.recompute:
            self.kept[place] = ExitStack()
            if part > 0:
                self.kept[place].enter_context(saved_for_backward(self.inputs[place].data))
            with no_grad():
                y = self.compute(*place)
        else:
            y = self.compute(*place)
        if part == self.last:
            self.loss += float(read(y.data, math.nan))
        elif self.layout.stage_of(part + 1) == self.stage.index:
            # The next part is on this rank too. It gets a copy, as if received, and so a separate
            # tape: then the two parts can free their activations at different times.
            self.inputs[microbatch, part + 1] = Tensor(y.data.copy(), requires_grad=True)
        self.outputs[place] = y

    def backward(self, microbatch: int, part: int) -> None:
        place = microbatch, part
        if ("activation", microbatch, part + 1) in self.sends:
            self.sends.pop(("activation", microbatch, part + 1)).wait()
        y = self.outputs.pop(place)
        if self.layout.recompute:
            with keep_buffers():  # the first forward has updated batch norm's running averages
                y = self.compute(*place)
        gradient = self.gradients.pop((microbatch, part + 1), None)
        if y.requires_grad:  # false in a first part without trained parameters
            y.backward(gradient)
        if self.layout.recompute:
            self.kept.pop(place).close()
        if part > 0:
            self.gradients[place] = self.inputs.pop(place).grad

    def update(self) -> None:
        """The optimizer's step, when all gradients of this stage are complete."""
        self.complete()
        self.stage.update()

    # Messages

    def post(self, what: str, microbatch: int, peer: int, part: int) -> None:
        buffer = self.loss if what == "loss" else self.buffer(self.shapes[microbatch][part])
        request = self.comm.irecv(buffer, peer, tag(what, microbatch, part, self.last + 1))
        self.receives[what, microbatch, part] = request, buffer

    def recv(self, what: str, microbatch: int, part: int) -> None:
        request, buffer = self.receives.pop((what, microbatch, part))
        with self.comm.step(f"receive {what} {microbatch}"):
            request.wait()
        if what == "activation":
            self.inputs[microbatch, part] = Tensor(buffer, requires_grad=True)
            self.in_use.setdefault((microbatch, part), []).append(buffer)
        elif what == "gradient":
            self.gradients[microbatch, part] = buffer
            self.in_use.setdefault((microbatch, part - 1), []).append(buffer)

    def send(self, what: str, microbatch: int, peer: int, part: int) -> None:
        if what == "loss":
            array = self.loss
        elif what == "activation":
            array = as_array(self.outputs[microbatch, part - 1])
        else:
            array = contiguous(self.gradients.pop((microbatch, part)))
        for key in [key for key, request in self.sends.items() if request.test()]:
            self.sends.pop(key)  # sent: its memory can be freed
        with self.comm.step(f"send {what} {microbatch}"):
            request = self.comm.isend(array, peer, tag(what, microbatch, part, self.last + 1))
        self.sends[what, microbatch, part] = request

    def finish(self) -> None:
        """Wait for the sends that are not complete yet."""
        for request in self.sends.values():
            request.wait()

    def buffer(self, shape: Shape) -> Array:
        """A buffer to receive into: a free one of this shape if there is one, else a new one."""
        free = self.stage.buffers.setdefault(shape, [])
        flat = self.stage.model.flat.data
        return free.pop() if free else arrays.module_of(flat).empty(shape, flat.dtype)

    def free(self, microbatch: int, part: int) -> None:
        """Mark the buffers of a microbatch as free, after its backward through this part."""
        for buffer in self.in_use.pop((microbatch, part), ()):
            self.stage.buffers[buffer.shape].append(buffer)


def tag(what: str, microbatch: int, part: int, parts: int) -> int:
    """The tag of a message, different for all messages between two ranks in a step.

    It is not 0, which collectives use: a receive of the loss is pending while norms are summed. So
    a model of ``parts`` parts takes ``most_microbatches(parts)``: see prover.py.
    """
    if what == "loss":
        return 1
    return 2 + 2 * (microbatch * parts + part) + (what == "gradient")


def as_array(y: Tensor) -> Array:
    return contiguous(y.data)


def contiguous(array: Array) -> Array:
    """``array`` itself, or a copy if it is not contiguous."""
    return arrays.module_of(array).ascontiguousarray(array)
