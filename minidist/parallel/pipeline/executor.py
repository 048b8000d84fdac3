"""Do a pipeline's program: one step of one rank, instruction by instruction.

It waits for nothing too early: a receive's buffer is ready one computation before the message is
needed, and a send is forgotten until its memory is.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np

from minidist.collectives import ring
from minidist.comm.comm import Comm, Future, Request
from minidist.data.batches import Batch
from minidist.engine import array as arrays
from minidist.engine.array import Array
from minidist.engine.seeds import draws
from minidist.engine.tensor import Deferred, Tensor, defer_weight_gradients, no_grad
from minidist.inspect.meter import saved_for_backward
from minidist.nn.module import Shape
from minidist.parallel.pipeline.schedules import (
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

if TYPE_CHECKING:
    from minidist.parallel.pipeline.pipeline import Pipeline


class Run:
    """One step of one rank: what is under way, and how each instruction is done."""

    def __init__(self, method: Pipeline, batch: Batch) -> None:
        self.method = method
        self.comm = method.pipe
        self.last = len(method.parts) - 1
        self.batches = method.microbatches_of(batch, method.replica)
        self.shapes = [method.shapes_of(part) for part in self.batches]
        self.inputs: dict[tuple[int, int], Tensor] = {}  # by microbatch and part
        self.outputs: dict[tuple[int, int], Tensor] = {}  # the loss in the last part
        self.gradients: dict[tuple[int, int], Array] = {}  # of a part's input
        self.deferred: dict[tuple[int, int], Deferred] = {}
        self.kept: dict[tuple[int, int], ExitStack] = {}  # inputs held for recomputation
        self.buffers: dict[tuple[int, int], list[Array]] = {}  # free after the backward
        self.arriving: dict[tuple[str, int, int], tuple[Request, Array]] = {}
        self.leaving: dict[tuple[str, int, int], Request] = {}
        self.reducing: list[Future] = []
        self.twins = list(method.twins)  # still to be added
        self.loss = np.zeros(1)

    def do(self, instruction: Any) -> None:
        match instruction:
            case Post(what, microbatch, peer, part):
                self.post(what, microbatch, peer, part)
            case Recv(what, microbatch, _, part):
                self.recv(what, microbatch, part)
            case Send(what, microbatch, peer, part):
                self.send(what, microbatch, peer, part)
            case Forward(microbatch, chunk):
                with self.named("forward", microbatch, chunk):
                    self.forward(microbatch, self.part(chunk))
            case Backward(microbatch, chunk):
                with self.named("backward", microbatch, chunk):
                    self.backward(microbatch, self.part(chunk))
                    self.free(microbatch, self.part(chunk))
            case InputGradient(microbatch, chunk):
                with self.named("input-gradient", microbatch, chunk):
                    with defer_weight_gradients() as queue:
                        self.backward(microbatch, self.part(chunk))
                    self.deferred[microbatch, self.part(chunk)] = queue
            case WeightGradient(microbatch, chunk):
                with self.named("weight-gradient", microbatch, chunk):
                    self.deferred.pop((microbatch, self.part(chunk))).run()
                    self.free(microbatch, self.part(chunk))
            case Reduce(what, chunk):
                self.reduce(what, chunk)
            case Step():
                self.update()

    # Computing

    def part(self, chunk: int) -> int:
        return self.method.schedule.part(self.method.stage, chunk, self.method.size)

    def named(self, what: str, microbatch: int, chunk: int) -> Any:
        """The step's name in the trace, from which a timeline is drawn."""
        of_chunk = f" chunk {chunk}" if self.method.schedule.chunks > 1 else ""
        return self.comm.step(f"{what} {microbatch}{of_chunk}")

    def compute(self, microbatch: int, part: int) -> Tensor:
        """A part's layers on a microbatch, and the loss in the last one."""
        batch = self.batches[microbatch]
        x = self.inputs[microbatch, part] if part > 0 else batch.inputs
        with draws(batch.seed, batch.step, batch.positions):
            y = self.method.parts[part](x)
        return self.method.loss(y, batch.targets, batch.count) if part == self.last else y

    def forward(self, microbatch: int, part: int) -> None:
        place = microbatch, part
        if self.method.recompute:
            self.kept[place] = ExitStack()
            if part > 0:
                held = saved_for_backward(self.inputs[place].data)
                self.kept[place].enter_context(held)
            with no_grad():
                y = self.compute(*place)
        else:
            y = self.compute(*place)
        if part == self.last:
            self.loss += y.item()
        elif self.stage_of(part + 1) == self.method.stage:
            # The next part is here too. It begins a tape of its own, with memory of its own, as if
            # it had received: then the two parts can free what they keep at different times.
            self.inputs[microbatch, part + 1] = Tensor(y.data.copy(), requires_grad=True)
        self.outputs[place] = y

    def backward(self, microbatch: int, part: int) -> None:
        place = microbatch, part
        if ("activation", microbatch, part + 1) in self.leaving:
            self.leaving.pop(("activation", microbatch, part + 1)).wait()
        y = self.outputs.pop(place)
        if self.method.recompute:
            y = self.compute(*place)
        gradient = self.gradients.pop((microbatch, part + 1), None)
        if y.requires_grad:  # no: a first part with nothing to train
            y.backward(gradient)
        if self.method.recompute:
            self.kept.pop(place).close()
        if part > 0:
            self.gradients[place] = self.inputs.pop(place).grad

    def update(self) -> None:
        """The optimizer's step, when all gradients of this stage are complete."""
        self.wait_for_reductions()
        self.add_twins(0, self.method.model.flat.size)
        self.method.update()

    # Messages

    def stage_of(self, part: int) -> int:
        return self.method.schedule.stage(part, self.method.size)

    def post(self, what: str, microbatch: int, peer: int, part: int) -> None:
        buffer = self.loss if what == "loss" else self.buffer(self.shapes[microbatch][part])
        request = self.comm.irecv(buffer, peer, tag(what, microbatch, part))
        self.arriving[what, microbatch, part] = request, buffer

    def recv(self, what: str, microbatch: int, part: int) -> None:
        request, buffer = self.arriving.pop((what, microbatch, part))
        with self.comm.step(f"receive {what} {microbatch}"):
            request.wait()
        if what == "activation":
            self.inputs[microbatch, part] = Tensor(buffer, requires_grad=True)
            self.buffers.setdefault((microbatch, part), []).append(buffer)
        elif what == "gradient":
            self.gradients[microbatch, part] = buffer
            self.buffers.setdefault((microbatch, part - 1), []).append(buffer)

    def send(self, what: str, microbatch: int, peer: int, part: int) -> None:
        if what == "loss":
            array = self.loss
        elif what == "activation":
            array = as_array(self.outputs[microbatch, part - 1])
        else:
            array = contiguous(self.gradients.pop((microbatch, part)))
        for key in [key for key, request in self.leaving.items() if request.test()]:
            self.leaving.pop(key)  # it has left: its memory may go
        with self.comm.step(f"send {what} {microbatch}"):
            request = self.comm.isend(array, peer, tag(what, microbatch, part))
        self.leaving[what, microbatch, part] = request

    def finish(self) -> None:
        """Wait for what has not left yet."""
        for request in self.leaving.values():
            request.wait()

    def buffer(self, shape: Shape) -> Array:
        """Memory to receive into: that of a microbatch which is done with, if there is one."""
        free = self.method._free.setdefault(shape, [])
        flat = self.method.model.flat.data
        return free.pop() if free else arrays.module_of(flat).empty(shape, flat.dtype)

    def free(self, microbatch: int, part: int) -> None:
        """The microbatch is done with in this part: its buffers may be received into again."""
        for buffer in self.buffers.pop((microbatch, part), ()):
            self.method._free[buffer.shape].append(buffer)

    # Sums over ranks

    def reduce(self, what: str, chunk: int) -> None:
        method, flat = self.method, self.method.model.flat
        if what == "replicas":
            assert method.copies is not None
            start, stop = method.chunk_range(method.stage, chunk)
            self.add_twins(start, stop)
            self.reducing.append(method.copies.spawn(_all_reduce, flat.grad[start:stop]))
        elif what == "loss":
            assert method.copies is not None
            ring.all_reduce(method.copies, self.loss)
        else:
            assert method.partners is not None
            self.wait_for_reductions()
            self.add_twins(0, flat.size)
            with self.comm.step("sum tied gradients"):
                for part in method.flat_tied():
                    ring.all_reduce(method.partners, flat.grad[part])

    def add_twins(self, start: int, stop: int) -> None:
        """Bring together what several blocks of this stage found for one parameter.

        Only parameters in this part of the flat array, and each once.
        """
        slices = self.method.model.flat.slices
        for pair in list(self.twins):
            first, twin = pair
            if start <= slices[first.name].start < stop:
                first.accumulate(twin.grad)
                self.twins.remove(pair)

    def wait_for_reductions(self) -> None:
        for future in self.reducing:
            future.wait()
        self.reducing.clear()


def _all_reduce(stream: Comm, gradients: Array) -> None:
    with stream.step("sum over replicas"):
        ring.all_reduce(stream, gradients)


def tag(what: str, microbatch: int, part: int) -> int:
    """A number for a message that no other between the same two ranks has in a step."""
    if what == "loss":
        return 0
    return 1 + 2 * (microbatch * 256 + part) + (what == "gradient")


def as_array(y: Tensor) -> Array:
    return contiguous(y.data)


def contiguous(array: Array) -> Array:
    """``array`` itself, or a copy if its elements do not lie in a row."""
    return arrays.module_of(array).ascontiguousarray(array)
