"""Clocks and ports of many ranks, to find when things happen without doing them.

Each rank is a generator that runs until it has to let others go first. The rank whose clock is
furthest behind always goes first, so ports are first come, first served. What a message takes is
the rule of ``comm/machine.py``, which the simulator follows too. A send costs its sender nothing,
and a receive only what is left of the message's time when it is waited for: that is how computing
hides messages.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

from minidist.comm.machine import Machine
from minidist.comm.ports import Ports
from minidist.parallel.pipeline.schedules import Compute

Task = Generator[None, None, None]


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


@dataclass(eq=False)
class Clock:
    """One task of a rank: its main program, or a reduction that runs meanwhile."""

    rank: int
    task: Task
    time: float = 0.0


@dataclass(eq=False)
class Side:
    """One side of a message, waiting for the other, or on its way until ``end``."""

    rank: int
    posted: float
    nbytes: int
    end: float = -1.0
    waiter: Clock | None = None


@dataclass(eq=False)
class Job:
    """A reduction on a rank's communication stream."""

    task: Task
    spawned: float
    end: float = -1.0
    waiter: Clock | None = None


@dataclass
class Stopwatch:
    """Clocks and ports of all ranks; the clock furthest behind always goes first."""

    machine: Machine
    ranks: int
    heap: list[tuple[float, int, Clock]] = field(default_factory=list)
    order: int = 0
    current: Clock = field(init=False)

    def __post_init__(self) -> None:
        self.found = Price(
            messages=[0] * self.ranks,
            nbytes=[0] * self.ranks,
            busy=[0.0] * self.ranks,
            peak_saved=[0] * self.ranks,
            spans=[[] for _ in range(self.ranks)],
        )
        self.ports = Ports(self.ranks)
        self.waiting: dict[Any, deque[Side]] = {}
        self.streams: list[deque[Job]] = [deque() for _ in range(self.ranks)]

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
        self.wake(Clock(rank, task), time)

    def wake(self, clock: Clock, time: float) -> None:
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
    ) -> Generator[None, None, Side]:
        """One side of a message is there: it starts if the other is."""
        yield from self.advance(self.current.time)
        rank = sender if sending else receiver
        side = Side(rank, self.current.time, nbytes)
        if sending:
            self.found.messages[rank] += 1
            self.found.nbytes[rank] += nbytes
        mine, theirs = (sender, receiver, key, sending), (sender, receiver, key, not sending)
        if not self.waiting.get(theirs):
            self.waiting.setdefault(mine, deque()).append(side)
            return side
        other = self.waiting[theirs].popleft()
        seconds = self.machine.message(nbytes if sending else other.nbytes)
        end = self.ports.carry(sender, receiver, max(side.posted, other.posted), seconds)
        for one in (side, other) if sending else (other, side):
            one.end = end
            if one.waiter is not None:
                self.wake(one.waiter, max(end, one.waiter.time))
        return side

    def wait(self, side: Side | Job) -> Task:
        if side.end < 0:
            side.waiter = self.current
            yield
        elif side.end > self.current.time:
            yield from self.advance(side.end)

    join = wait

    def spawn(self, rank: int, task: Task) -> Job:
        """Run a reduction on the rank's stream, after those that were spawned before."""
        job = Job(task, self.current.time)
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
