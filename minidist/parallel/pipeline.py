"""Pipeline parallelism: every rank holds a stage, some consecutive blocks of the model.

    microbatch → stage 0 → activations → stage 1 → activations → stage 2 → loss
                 rank 0  ←  gradients  ← rank 1  ←  gradients  ← rank 2

A stage receives its input, computes, and sends its output on; backward the same in reverse, since
the backward of a send is a receive. To keep all stages at work the batch is cut into
microbatches; in which order a stage works on them is its schedule (``schedules.py``), and this
file runs any schedule. It waits for nothing too early: a receive's buffer is ready one computation
before the message is needed, and a send is forgotten until its memory is.

A rank sends activations and their gradients only, never parameters: for each microbatch of b rows
and a boundary of h values, b·h elements to the right and as many to the left, and one element,
the loss, at the end. Memory: a stage's own parameters, gradients and optimizer state, and what the
schedule keeps of activations. Time: see ``pricing.price``, which reads the same list.

Parameters that two stages share (GPT's embedding) live on both, take the sum of both gradients,
and so stay equal. With ``replicas`` = d there are d copies of the pipeline, each for its part of
the batch: rank r is stage r % p of copy r // p, and a stage's gradients are summed over the copies
as soon as they are complete, while other stages still go backward.

Huang et al., "GPipe", arXiv 1811.06965; Narayanan et al., arXiv 2104.04473, section 2.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from minidist import array as arrays
from minidist.array import Array
from minidist.collectives import central, ring
from minidist.comm.comm import Comm, Future, Request
from minidist.comm.machine import Machine
from minidist.data.batches import Batch
from minidist.meter import saved_for_backward
from minidist.nn.layers import Sequential
from minidist.nn.module import Module, Shape
from minidist.optim.optimizer import Optimizer
from minidist.parallel.method import Method, StepCost, parameter_count
from minidist.parallel.pricing import Memory, Price, Ring, price, validate
from minidist.parallel.schedules import (
    SCHEDULES,
    Backward,
    Compute,
    Forward,
    InputGradient,
    Post,
    Recv,
    Reduce,
    Schedule,
    Send,
    Step,
    WeightGradient,
    program,
)
from minidist.parallel.stages import (
    Bounds,
    PartCost,
    block_flops,
    cut,
    join,
    part_cost,
    separate,
    tied,
)
from minidist.seeds import draws
from minidist.tensor import Deferred, Tensor, defer_weight_gradients, no_grad


class Pipeline(Method):
    """Rank r is stage r. ``schedule`` is a name in ``SCHEDULES``, or a Schedule of your own.

    The model is cut into a part for each chunk of each stage, as even in FLOPs as can be, or by
    other ``costs`` of its blocks, or by hand: ``bounds=[(0, 3), (3, 8)]`` makes blocks 0 to 2 the
    first part and 3 to 7 the second. ``recompute`` keeps only a part's input of a microbatch, and
    goes forward again when it goes backward.
    """

    def __init__(
        self,
        model: Sequential,
        loss: Module,
        optimizer: Optimizer,
        comm: Comm,
        seed: int = 0,
        schedule: str | Schedule = "gpipe",
        microbatches: int = 4,
        bounds: Bounds | None = None,
        costs: Sequence[float] | None = None,
        recompute: bool = False,
        replicas: int = 1,
    ) -> None:
        super().__init__(model, loss, optimizer, comm, seed)
        if isinstance(schedule, str):
            if schedule not in SCHEDULES:
                known = ", ".join(SCHEDULES)
                raise ValueError(f"unknown schedule {schedule!r}: choose one of {known}")
            schedule = SCHEDULES[schedule]
        if microbatches < 1:
            raise ValueError(f"a pipeline needs at least one microbatch, not {microbatches}")
        if replicas < 1 or comm.size % replicas:
            raise ValueError(f"{comm.size} ranks cannot be {replicas} equal pipelines")
        self.schedule = schedule
        self.microbatches = microbatches
        self.recompute = recompute
        self.replicas = replicas
        self.size = comm.size // replicas  # stages
        self.stage = comm.rank % self.size
        self.replica = comm.rank // self.size
        self.pipe = comm.split(self.replica) if replicas > 1 else comm
        self.copies = comm.split(self.stage) if replicas > 1 else None

        self.bounds = bounds or self._cut(costs)
        self._check_bounds()
        self.parts = [model[start:stop] for start, stop in self.bounds]
        self.stages = [
            join([self.parts[schedule.part(stage, c, self.size)] for c in range(schedule.chunks)])
            for stage in range(self.size)
        ]
        self.model = self.stages[self.stage].init(seed)  # only this stage is given memory
        self.twins = separate(self.model)
        self.shared = tied(self.stages)
        self._check_shared()
        holders = sorted({stage for where in self.shared.values() for stage in where})
        self.tied_stages = holders
        self.partners = self.pipe.split(int(self.stage in holders)) if holders else None

        reduce = [("replicas", replicas > 1), ("loss", replicas > 1)]
        programs = []
        for stage in range(self.size):
            needs = [*reduce, ("tied", stage in holders)]
            names = tuple(name for name, needed in needs if needed)
            programs.append(program(schedule, stage, self.size, microbatches, names))
        validate(programs, schedule, microbatches)
        self.programs = programs
        self._prices: dict[Any, Price] = {}
        self._free: dict[Shape, list[Array]] = {}  # buffers to receive into

    # Cutting

    def _cut(self, costs: Sequence[float] | None) -> Bounds:
        """As even as can be.

        Of more chunks than blocks that compute anything, the last stay empty: they pass on.
        """
        costs = block_flops(self.whole) if costs is None else costs
        parts = self.size * self.schedule.chunks
        full = parts
        if self.schedule.chunks > 1:
            full = min(parts, max(self.size, sum(cost > 0 for cost in costs)))
        return [*cut(costs, full), *[(len(costs), len(costs))] * (parts - full)]

    def _check_bounds(self) -> None:
        parts = self.size * self.schedule.chunks
        ends = [0, *(stop for _, stop in self.bounds)]
        starts = [*(start for start, _ in self.bounds), len(self.whole)]
        if ends != starts or len(self.bounds) != parts:
            raise ValueError(
                f"bounds {self.bounds} must cut {len(self.whole)} blocks into consecutive "
                f"(start, stop) parts, {self.schedule.chunks} for each of {self.size} stages"
            )

    def _check_shared(self) -> None:
        if len({tuple(where) for where in self.shared.values()}) > 1:
            raise ValueError(
                f"stages share parameters in several ways, {self.shared}: cut by hand, so that "
                "the same stages share all of them"
            )

    # One step

    def step(self, batch: Batch) -> float:
        self.run = run = _Run(self, batch)
        for _, twin in self.twins:
            twin.grad.fill(0)  # type: ignore[union-attr]
        self.model.zero_grad()
        for instruction in self.programs[self.stage]:
            run.do(instruction)
        run.finish()
        return float(run.loss[0])

    def microbatches_of(self, batch: Batch, replica: int) -> list[Batch]:
        """The microbatches of one copy of the pipeline."""
        return batch.shard(replica, self.replicas).microbatches(self.microbatches)

    def shapes_of(self, part: Batch) -> list[Shape]:
        """The shape of every part's input for a microbatch: no message needs to tell."""
        first: Shape = (len(part), *part.dataset.input_shape)
        blocks = self.whole.costs(first)
        return [first if start == 0 else blocks[start - 1].shape for start, _ in self.bounds]

    def flat_tied(self) -> list[slice]:
        """Where this stage's shared parameters lie."""
        return [self.model.flat.slices[name] for name in self.shared]

    def holds(self) -> dict[str, list[Array]]:
        held = super().holds()
        held["gradients"] += [twin.grad for _, twin in self.twins]
        return held

    def parameters(self) -> dict[str, np.ndarray]:
        """Every stage sends its own to all others."""
        found: dict[str, np.ndarray] = {}
        flat = self.model.flat.data
        for rank, stage in enumerate(self.stages):
            data = (
                flat.copy()
                if rank == self.stage
                else arrays.module_of(flat).empty(parameter_count(stage), flat.dtype)
            )
            central.broadcast(self.pipe, data, root=rank)
            start = 0
            for name, parameter in stage.named_parameters().items():
                part = data[start : start + parameter.size]
                found[name] = arrays.to_host(part).reshape(parameter.declared)
                start += parameter.size
        return {name: found[name] for name in self.whole.named_parameters()}

    # What it costs

    def cost(self, batch: Batch, machine: Machine) -> StepCost:
        """Priced from the programs themselves."""
        priced = self.price(batch, machine)
        ranks = range(self.comm.size)
        own = [parameter_count(stage) * self.itemsize for stage in self.stages]
        twins = [_twin_count(stage) * self.itemsize for stage in self.stages]
        own_by_rank = [own[rank % self.size] for rank in ranks]
        return StepCost(
            messages=priced.messages,
            nbytes=priced.nbytes,
            peak_bytes={
                "parameters": own_by_rank,
                "gradients": [own[rank % self.size] + twins[rank % self.size] for rank in ranks],
                "optimizer": [len(self.optimizer.slots) * n for n in own_by_rank],
                "activations": priced.peak_saved,
            },
            busy=priced.busy,
            seconds=priced.seconds,
        )

    def price(self, batch: Batch, machine: Machine) -> Price:
        """What a step on ``batch`` should take, with every computation's start and end."""
        parts = [self.microbatches_of(batch, replica) for replica in range(self.replicas)]
        key = tuple(len(part) for copy in parts for part in copy), repr(machine)
        if key not in self._prices:
            self._prices[key] = self._price(parts, machine)
        return self._prices[key]

    def _price(self, batches: list[list[Batch]], machine: Machine) -> Price:
        last = len(self.parts) - 1
        known: dict[tuple[int, int], list[PartCost]] = {}
        inputs: dict[int, list[Shape]] = {}
        for batch in (batch for copy in batches for batch in copy):
            if len(batch) not in inputs:
                inputs[len(batch)] = self.shapes_of(batch)
                for part, shape in enumerate(inputs[len(batch)]):
                    loss = self.loss if part == last else None
                    cost = part_cost(
                        self.parts[part], shape, self.itemsize, loss, part == 0, self.recompute
                    )
                    known[len(batch), part] = cost  # type: ignore[assignment]

        def length(rank: int, microbatch: int) -> int:
            return len(batches[rank // self.size][microbatch])

        def cost_of(rank: int, instruction: Compute) -> PartCost:
            part = self.schedule.part(rank % self.size, instruction.chunk, self.size)
            return known[length(rank, instruction.microbatch), part]  # type: ignore[return-value]

        def seconds(rank: int, instruction: Compute) -> float:
            cost = cost_of(rank, instruction)
            flops = {
                Forward: cost.forward,
                Backward: cost.input_gradient + cost.weight_gradient,
                InputGradient: cost.input_gradient,
                WeightGradient: cost.weight_gradient,
            }
            return machine.compute(flops[type(instruction)], rank)

        def nbytes(rank: int, send: Send) -> int:
            if send.what == "loss":
                return 8
            shape = inputs[length(rank, send.microbatch)][send.part]
            return int(np.prod(shape)) * self.itemsize

        def memory(rank: int, instruction: Compute) -> Memory:
            cost = cost_of(rank, instruction)
            mixed = isinstance(instruction, (Forward, Backward))
            return cost.memory if mixed else cost.split

        def reduction(rank: int, instruction: Reduce) -> Ring:
            stage, copy = rank % self.size, rank // self.size
            if instruction.what == "tied":
                group = [copy * self.size + other for other in self.tied_stages]
                named = self.whole.named_parameters()
                return Ring(group, sum(named[name].size for name in self.shared), self.itemsize)
            group = [other * self.size + stage for other in range(self.replicas)]
            if instruction.what == "loss":
                return Ring(group, 1, 8)
            start, stop = chunk_range(self, stage, instruction.chunk)
            return Ring(group, stop - start, self.itemsize)

        return price(
            self.programs,
            machine,
            seconds=seconds,
            nbytes=nbytes,
            memory=memory,
            ring=reduction,
            replicas=self.replicas,
        )


def chunk_range(method: Pipeline, stage: int, chunk: int) -> tuple[int, int]:
    """Where a chunk's parameters lie in its stage's flat array.

    A parameter that two chunks of a stage share belongs to the chunk that is finished last.
    """
    schedule = method.schedule
    parts = [method.parts[schedule.part(stage, c, method.size)] for c in range(schedule.chunks)]
    ends = [parameter_count(join(parts[: c + 1])) for c in range(schedule.chunks)]
    return ([0, *ends])[chunk], ends[chunk]


def _twin_count(stage: Sequential) -> int:
    """Elements of the extra gradients that ``separate`` makes."""
    apart = sum(parameter_count(block) for block in stage.blocks.values())
    return apart - parameter_count(stage)


class _Run:
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
            start, stop = chunk_range(method, method.stage, chunk)
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
