"""Prove that a pipeline's programs can run, and predict what they cost, without running them.

``validate`` walks through all stages' lists as if time did not exist: a send leaves at once, a
receive waits for its send. If everybody comes to the end, no timing can make it deadlock.

``price`` walks through them with a stopwatch. Each rank has a clock; a message of n bytes takes
α + nβ from when its send *and* its post are there and both ranks' ports are free. A send costs
its sender nothing, and a receive only what is left of the way when it is waited for: that is how
computing hides messages. The rank whose clock is furthest behind always goes first, so a port
serves who came first.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from minidist.collectives.ring import chunks as ring_chunks
from minidist.comm.machine import Machine
from minidist.parallel.schedules import (
    COMPUTE,
    Backward,
    Compute,
    Forward,
    InputGradient,
    Instruction,
    Post,
    Recv,
    Reduce,
    Schedule,
    Send,
    Step,
    WeightGradient,
    program,
)


class ScheduleError(ValueError):
    """A schedule that cannot run: the message names the stage and the instruction."""


def validate(
    programs: Sequence[Sequence[Instruction]], schedule: Schedule, microbatches: int
) -> None:
    """Prove that all stages' programs together train each microbatch once, and never get stuck.

    Raises ScheduleError for work that is missing, double or before what it needs; for messages
    that nobody sends, receives or has; and for a deadlock.
    """
    stages = len(programs)
    last = stages * schedule.chunks - 1
    # Messages and results that exist, each as (what, microbatch, part): on the way, and by stage.
    travelling: set[tuple[Any, ...]] = set()
    has: list[set[tuple[Any, ...]]] = [set() for _ in programs]
    done: list[set[Instruction]] = [set() for _ in programs]
    position = [0] * stages

    def fail(stage: int, instruction: Instruction, why: str) -> None:
        place = position[stage]
        raise ScheduleError(f"stage {stage}: {instruction}, its instruction {place}, {why}")

    def need(stage: int, instruction: Instruction, what: tuple[Any, ...], why: str) -> None:
        if what not in has[stage]:
            fail(stage, instruction, why)

    def compute(stage: int, instruction: Compute) -> None:
        microbatch, chunk = instruction.microbatch, instruction.chunk
        if not (0 <= microbatch < microbatches and 0 <= chunk < schedule.chunks):
            limits = f"{microbatches} microbatches and {schedule.chunks} chunks"
            fail(stage, instruction, f"is not within {limits}")
        part = schedule.part(stage, chunk, stages)
        match instruction:
            case Forward():
                if part > 0:
                    need(stage, instruction, ("activation", microbatch, part), "has no input yet")
                has[stage].add(("forward", microbatch, part))
                has[stage].add(("activation", microbatch, part + 1))
            case Backward() | InputGradient():
                forward = ("forward", microbatch, part)
                need(stage, instruction, forward, "has no Forward before it, or is a second one")
                if part < last:
                    why = "has no gradient of its output yet"
                    need(stage, instruction, ("gradient", microbatch, part + 1), why)
                has[stage].discard(forward)
                has[stage].add(("gradient", microbatch, part))
                kind = "weights" if isinstance(instruction, Backward) else "input"
                has[stage].add((kind, microbatch, part))
            case WeightGradient():
                before = ("input", microbatch, part)
                need(stage, instruction, before, "has no InputGradient before it")
                has[stage].discard(before)
                has[stage].add(("weights", microbatch, part))

    def run(stage: int, instruction: Instruction) -> bool:
        """Do the instruction, if it can be done now."""
        match instruction:
            case Post() | Reduce() | Step():
                pass
            case Send(what, microbatch, peer, part):
                key = (what, microbatch, part)
                if what != "loss":
                    need(stage, instruction, key, "sends what is not computed yet")
                travelling.add((stage, peer, *key))
            case Recv(what, microbatch, peer, part):
                if Post(what, microbatch, peer, part) not in done[stage]:
                    fail(stage, instruction, "has no Post before it")
                if (peer, stage, what, microbatch, part) not in travelling:
                    return False
                travelling.discard((peer, stage, what, microbatch, part))
                has[stage].add((what, microbatch, part))
            case _:
                compute(stage, instruction)
        if isinstance(instruction, Step):
            return True
        if instruction in done[stage]:
            fail(stage, instruction, "comes a second time")
        done[stage].add(instruction)
        return True

    moved = True
    while moved:
        moved = False
        for stage, instructions in enumerate(programs):
            while position[stage] < len(instructions) and run(stage, instructions[position[stage]]):
                position[stage] += 1
                moved = True
    _check_stuck(programs, position)
    for sender, peer, what, microbatch, part in sorted(travelling):
        lost = Send(what, microbatch, peer, part)
        raise ScheduleError(f"stage {sender}: {lost} is never received by stage {peer}")
    for stage, instructions in enumerate(programs):
        _check_complete(stage, instructions, schedule, microbatches)


def _check_stuck(programs: Sequence[Sequence[Instruction]], position: list[int]) -> None:
    """Raise ScheduleError if a stage stands still; one that nobody ever serves is named first."""
    stuck = []
    for stage, instructions in enumerate(programs):
        if position[stage] < len(instructions):
            waiting = instructions[position[stage]]
            assert isinstance(waiting, Recv)  # nothing else waits
            send = Send(waiting.what, waiting.microbatch, stage, waiting.part)
            comes = send in programs[waiting.peer][position[waiting.peer] :]
            stuck.append((comes, stage, waiting))
    for comes, stage, waiting in sorted(stuck, key=lambda one: one[:2]):
        why = "waits itself before it sends that" if comes else "never sends that"
        raise ScheduleError(
            f"stage {stage} can never run {waiting}, its instruction {position[stage]}: "
            f"stage {waiting.peer} {why}"
        )


def _check_complete(
    stage: int, instructions: Sequence[Instruction], schedule: Schedule, microbatches: int
) -> None:
    """Every microbatch has passed every chunk before the last Step."""
    steps = [place for place, item in enumerate(instructions) if isinstance(item, Step)]
    before = instructions[: steps[-1]] if steps else []
    done = {
        (item.microbatch, item.chunk)
        for item in before
        if isinstance(item, (Backward, WeightGradient))
    }
    for chunk in range(schedule.chunks):
        missing = [micro for micro in range(microbatches) if (micro, chunk) not in done]
        if missing:
            raise ScheduleError(
                f"stage {stage}: Step() before the gradients of microbatches {missing}"
                + (f" of chunk {chunk}" if schedule.chunks > 1 else "")
            )


@dataclass(frozen=True)
class Memory:
    """Bytes that a microbatch keeps on a stage."""

    saved: int  # from its forward to its backward
    backward: int = 0  # at the highest, during its backward
    deferred: int = 0  # from its input's gradient to its weights'


@dataclass(frozen=True)
class Span:
    """An instruction of a rank, and when it was computed."""

    instruction: Compute
    start: float
    end: float


@dataclass
class Price:
    """What programs should cost, by rank: messages, bytes, seconds busy, peak bytes saved."""

    messages: list[int]
    nbytes: list[int]
    busy: list[float]
    peak_saved: list[int]
    spans: list[list[Span]]
    seconds: float = 0.0

    @property
    def idle_fraction(self) -> float:
        """The share of all ranks' time in which they do not compute."""
        return 1 - sum(self.busy) / (len(self.busy) * self.seconds) if self.seconds else 0.0


@dataclass(frozen=True)
class Ring:
    """An all-reduce over ``group``, in the ring's order, of ``length`` elements."""

    group: list[int]
    length: int
    itemsize: int


def price(
    programs: Sequence[Sequence[Instruction]],
    machine: Machine,
    seconds: Callable[[int, Compute], float],
    nbytes: Callable[[int, Send], int],
    memory: Callable[[int, Compute], Memory],
    ring: Callable[[int, Reduce], Ring] | None = None,
    replicas: int = 1,
) -> Price:
    """Time, memory and messages of ``replicas`` copies of a pipeline with these programs.

    Rank r is stage r % p of copy r // p. For each rank: ``seconds`` of a computation, ``nbytes``
    of a message, ``memory`` of a microbatch, and the ``ring`` of a reduction.
    """
    watch = _Stopwatch(machine, len(programs) * replicas)
    for rank in range(len(programs) * replicas):
        instructions = programs[rank % len(programs)]
        first = rank - rank % len(programs)  # the first stage of this rank's pipeline
        watch.start(
            rank, _run(watch, rank, first, instructions, seconds, nbytes, memory, ring), 0.0
        )
    return watch.run()


Task = Generator[None, None, None]


def _run(
    watch: _Stopwatch,
    rank: int,
    first: int,
    instructions: Sequence[Instruction],
    seconds: Callable[[int, Compute], float],
    nbytes: Callable[[int, Send], int],
    memory: Callable[[int, Compute], Memory],
    ring: Callable[[int, Reduce], Ring] | None,
) -> Task:
    """One rank: exactly the calls that the executor makes."""
    found = watch.found
    receiving: dict[Any, _Side] = {}
    sending: dict[Any, _Side] = {}
    reducing: list[_Job] = []
    held = 0

    for instruction in instructions:
        match instruction:
            case Post(what, microbatch, peer, part):
                side = yield from watch.post(first + peer, rank, (what, microbatch, part), False)
                receiving[what, microbatch, part] = side
            case Recv(what, microbatch, _, part):
                yield from watch.wait(receiving.pop((what, microbatch, part)))
            case Send(what, microbatch, peer, part):
                length = nbytes(rank, instruction)
                side = yield from watch.post(
                    rank, first + peer, (what, microbatch, part), True, length
                )
                sending[what, microbatch, part] = side
            case Reduce("replicas", _):
                assert ring is not None
                reducing.append(
                    watch.spawn(rank, _ring(watch, rank, ring(rank, instruction), False))
                )
            case Reduce():
                assert ring is not None
                for job in reducing:
                    yield from watch.join(job)
                reducing.clear()
                yield from _ring(watch, rank, ring(rank, instruction), True)
            case Step():
                for job in reducing:
                    yield from watch.join(job)
                reducing.clear()
            case _:
                cost = memory(rank, instruction)
                match instruction:
                    case Forward():
                        held += cost.saved
                        highest = held
                    case Backward():
                        highest = held - cost.saved + cost.backward
                        held -= cost.saved
                    case InputGradient():
                        highest = held - cost.saved + cost.backward
                        held += cost.deferred - cost.saved
                    case WeightGradient():
                        highest = held
                        held -= cost.deferred
                found.peak_saved[rank] = max(found.peak_saved[rank], highest)
                watch.compute(rank, seconds(rank, instruction), instruction)
    for side in sending.values():
        yield from watch.wait(side)


def _ring(watch: _Stopwatch, rank: int, ring: Ring, counted: bool) -> Task:
    """A ring all-reduce, message by message (see ``collectives/ring.py``)."""
    size, place = len(ring.group), ring.group.index(rank)
    left, right = ring.group[(place - 1) % size], ring.group[(place + 1) % size]
    lengths = [part.stop - part.start for part in ring_chunks(ring.length, size)]
    for half in range(2):
        for turn in range(size - 1):
            out = lengths[(place + half - turn) % size] * ring.itemsize
            into = lengths[(place + half - turn - 1) % size] * ring.itemsize
            key = ("ring", tuple(ring.group), counted)
            receiving = yield from watch.post(left, rank, key, False)
            sending = yield from watch.post(rank, right, key, True, out)
            yield from watch.wait(sending)
            yield from watch.wait(receiving)
            if half == 0:
                watch.reduce(rank, into, counted)


@dataclass(eq=False)
class _Clock:
    """One task of a rank: its main program, or a reduction that runs meanwhile."""

    rank: int
    task: Task
    time: float = 0.0


@dataclass(eq=False)
class _Side:
    """One side of a message, waiting for the other, or on its way until ``end``."""

    rank: int
    posted: float
    nbytes: int
    end: float = -1.0
    waiter: _Clock | None = None


@dataclass(eq=False)
class _Job:
    """A reduction on a rank's communication stream."""

    task: Task
    spawned: float
    end: float = -1.0
    waiter: _Clock | None = None


@dataclass
class _Stopwatch:
    """Clocks and ports of all ranks; the clock furthest behind always goes first."""

    machine: Machine
    ranks: int
    heap: list[tuple[float, int, _Clock]] = field(default_factory=list)
    order: int = 0
    current: _Clock = field(init=False)

    def __post_init__(self) -> None:
        self.found = Price(
            messages=[0] * self.ranks,
            nbytes=[0] * self.ranks,
            busy=[0.0] * self.ranks,
            peak_saved=[0] * self.ranks,
            spans=[[] for _ in range(self.ranks)],
        )
        self.out_free, self.in_free = [0.0] * self.ranks, [0.0] * self.ranks
        self.waiting: dict[Any, deque[_Side]] = {}
        self.streams: list[deque[_Job]] = [deque() for _ in range(self.ranks)]

    def run(self) -> Price:
        while self.heap:
            time, _, clock = heapq.heappop(self.heap)
            clock.time = time
            self.current = clock
            for _ in clock.task:
                break  # until it lets others go first
            self.found.seconds = max(self.found.seconds, clock.time)
        return self.found

    def start(self, rank: int, task: Task, time: float) -> None:
        self.wake(_Clock(rank, task), time)

    def wake(self, clock: _Clock, time: float) -> None:
        self.order += 1
        heapq.heappush(self.heap, (time, self.order, clock))

    def advance(self, time: float) -> Task:
        """Go on at ``time``, after all that are further behind."""
        if self.heap and self.heap[0][0] < time:
            self.wake(self.current, time)
            yield
        else:
            self.current.time = time

    def compute(self, rank: int, seconds: float, instruction: Compute) -> None:
        start = self.current.time
        self.current.time += seconds
        self.found.busy[rank] += seconds
        self.found.spans[rank].append(Span(instruction, start, self.current.time))

    def reduce(self, rank: int, nbytes: int, counted: bool) -> None:
        seconds = self.machine.reduce(nbytes)
        self.current.time += seconds
        if counted:
            self.found.busy[rank] += seconds

    def post(
        self, sender: int, receiver: int, key: Any, sending: bool, nbytes: int = 0
    ) -> Generator[None, None, _Side]:
        """One side of a message is there: it starts if the other is."""
        yield from self.advance(self.current.time)
        rank = sender if sending else receiver
        side = _Side(rank, self.current.time, nbytes)
        if sending:
            self.found.messages[rank] += 1
            self.found.nbytes[rank] += nbytes
        mine, theirs = (sender, receiver, key, sending), (sender, receiver, key, not sending)
        if not self.waiting.get(theirs):
            self.waiting.setdefault(mine, deque()).append(side)
            return side
        other = self.waiting[theirs].popleft()
        begin = max(side.posted, other.posted, self.out_free[sender], self.in_free[receiver])
        end = begin + self.machine.message(nbytes if sending else other.nbytes)
        self.out_free[sender] = self.in_free[receiver] = end
        for one in (side, other) if sending else (other, side):
            one.end = end
            if one.waiter is not None:
                self.wake(one.waiter, max(end, one.waiter.time))
        return side

    def wait(self, side: _Side | _Job) -> Task:
        if side.end < 0:
            side.waiter = self.current
            yield
        elif side.end > self.current.time:
            yield from self.advance(side.end)

    join = wait

    def spawn(self, rank: int, task: Task) -> _Job:
        """Run a reduction on the rank's stream, after those that it was given before."""
        job = _Job(task, self.current.time)
        self.streams[rank].append(job)
        if len(self.streams[rank]) == 1:
            self.start(rank, self._drain(rank), self.current.time)
        return job

    def _drain(self, rank: int) -> Task:
        while self.streams[rank]:
            job = self.streams[rank][0]
            yield from self.advance(max(self.current.time, job.spawned))
            yield from job.task
            self.streams[rank].popleft()
            job.end = self.current.time
            if job.waiter is not None:
                self.wake(job.waiter, max(job.end, job.waiter.time))


FREE = Machine("free messages", latency=0.0, bandwidth=float("inf"))


def price_units(
    schedule: Schedule,
    stages: int,
    microbatches: int,
    forward: float = 1.0,
    input_gradient: float = 1.0,
    weight_gradient: float = 1.0,
    message: float = 0.0,
) -> Price:
    """Price a schedule with stages of equal cost: ``forward`` and so on are for a whole stage.

    Memory is counted in chunks of a microbatch, kept until its weights' gradient. Raises
    ScheduleError if the schedule cannot run.
    """
    programs = [program(schedule, stage, stages, microbatches) for stage in range(stages)]
    validate(programs, schedule, microbatches)
    units = {
        Forward: forward,
        Backward: input_gradient + weight_gradient,
        InputGradient: input_gradient,
        WeightGradient: weight_gradient,
    }
    machine = Machine("units", latency=message, bandwidth=float("inf"))
    return price(
        programs,
        machine,
        seconds=lambda rank, item: units[type(item)] / schedule.chunks,
        nbytes=lambda rank, send: 1,
        memory=lambda rank, item: Memory(saved=1, backward=1, deferred=1),
    )


__all__ = [
    "COMPUTE",
    "FREE",
    "Memory",
    "Price",
    "Ring",
    "ScheduleError",
    "Span",
    "price",
    "price_units",
    "validate",
]
