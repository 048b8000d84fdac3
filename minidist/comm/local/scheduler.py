"""The scheduler: which of all tasks runs next, and what its clock says.

Every stream of every rank is a ``Task``: a greenlet, a function that can be paused inside a call
and resumed later, with a clock of its own. The rule: *the task that runs is always the one whose
clock is furthest behind*. So what it does cannot affect events that came earlier, and every run of
a program is the same run.

A task's clock moves when it computes (``clock``), and when it waits for something that ends later
(``advance``, ``pause``). What it waits for is no concern of this file: see ``simulator.py``.
"""

from __future__ import annotations

import contextvars
import math
import random
import sys
from collections import deque
from collections.abc import Callable
from functools import partial
from heapq import heappop, heappush
from typing import Any

import greenlet

from minidist.comm.errors import Crash
from minidist.comm.machine import Machine, Pauses
from minidist.comm.messages import users_line
from minidist.engine.array import work


class Deadlock(RuntimeError):
    """No rank can go on: each waits for a message, or for a rank, that can never come."""


class Task:
    """One stream of one rank: a greenlet with a clock."""

    __slots__ = ("clock", "doing", "greenlet", "pending", "rank", "stream", "until")

    def __init__(self, rank: int, stream: str, clock: float) -> None:
        self.rank = rank
        self.stream = stream
        self.clock = clock
        self.doing: Any = None  # what it waits for; None while it can run
        self.pending = 0  # messages that it waits for and that have not begun
        self.until = 0.0  # when the last of those that have begun is through
        self.greenlet: Any = None


class Scheduler:
    """The tasks of one run, and their clocks."""

    def __init__(self, machine: Machine, ranks: int) -> None:
        self.machine = machine
        self.interrupted: list[Interrupted] = []  # by rank, if the machine has pauses
        if machine.pauses is not None:
            make = partial(Interrupted, machine.pauses, machine.seed)
            self.interrupted = [make(rank) for rank in range(ranks)]
        self.crash_at = dict(machine.crashes)  # seconds, by rank
        self.ranks = ranks
        self.clocks: list[float] = []  # a heap: the clocks of the tasks that can run, each once
        self.ready: dict[float, deque[Task]] = {}  # these tasks, by clock: first come, first served
        self.tasks: list[Task] = []
        self.current: Task
        self.error: BaseException | None = None
        # FLOPs on the counter that have been charged to a clock. The counter's other seconds,
        # ``work.beyond``, are set to zero when they are charged.
        self.charged = 0
        self.lost: set[int] = set()  # ranks that crashed

    def run(self) -> float:
        """Run all tasks to their end; returns the clock of the slowest."""
        self.hub = greenlet.getcurrent()
        prices = work.prices()
        work.set_prices(self.machine.kernel_prices)
        for task in self.tasks:
            task.greenlet.parent = self.hub
        try:
            while self.clocks:
                self._leave(hub=True)
                if self.error is not None:
                    raise self.error
            stuck = [t for t in self.tasks if t.doing is not None and t.rank not in self.lost]
            if stuck:
                raise Deadlock(describe(stuck, self.ranks))
        finally:
            for task in self.tasks:
                if not task.greenlet.dead:
                    task.greenlet.throw(greenlet.GreenletExit)
            work.set_prices(prices)
        return max(task.clock for task in self.tasks)

    def start(self, rank: int, stream: str, clock: float, body: Callable[[], None]) -> None:
        """A new task that runs ``body`` from ``clock`` on."""
        task = Task(rank, stream, clock)

        def guarded() -> None:
            self.charged, work.beyond = work.flops, 0.0
            try:
                body()
            except greenlet.GreenletExit:
                pass  # the run is over: another rank failed
            except Crash:
                self.crash(rank)
            except BaseException as error:
                if isinstance(error, SystemExit) and not error.code:
                    error.code = 1  # the other ranks have not finished, so the program has not
                    print(f"rank {rank} of {self.ranks} left by sys.exit", file=sys.stderr)
                where = f"raised on rank {rank} of {self.ranks}{f' ({stream})' if stream else ''}"
                error.add_note(where + ", local world")
                self.error = error

        task.greenlet = greenlet.greenlet(guarded, parent=getattr(self, "hub", None))
        # The rank inherits the caller's settings (dtype, no_grad), and then keeps its own.
        task.greenlet.gr_context = contextvars.copy_context()
        if stream:
            self.tasks = [t for t in self.tasks if not t.stream or not t.greenlet.dead]
        self.tasks.append(task)
        self.wake(task, clock)

    def wake(self, task: Task, clock: float) -> None:
        """``task`` can run again, at ``clock``: it does when it is the furthest behind."""
        queue = self.ready.get(clock)
        if queue is None:
            queue = self.ready[clock] = deque()
            heappush(self.clocks, clock)
        queue.append(task)

    def pause(self, doing: Any) -> None:
        """Pause the current task until it is woken; the one furthest behind goes on."""
        task = self.current
        task.doing = doing
        self._leave()
        task.doing = None

    def catch_up(self) -> None:
        """Let all tasks that are further behind than the current one go first."""
        if self.clocks and self.clocks[0] < self.current.clock:
            self.wake(self.current, self.current.clock)
            self._leave()

    def advance(self, clock: float) -> float:
        """The current task goes on at ``clock``, after all tasks that are further behind."""
        task = self.current
        if self.clocks and self.clocks[0] < clock:
            self.wake(task, clock)
            self._leave()
        task.clock = clock
        return clock

    def _leave(self, hub: bool = False) -> None:
        """Run the task that is furthest behind; returns when the current one is that again.

        ``hub``: called by ``run``, which starts the tasks: started by another task, one would
        inherit its stack.
        """
        if self.clocks and (hub or self.ready[self.clocks[0]][0].greenlet):  # it has started
            clock = self.clocks[0]
            queue = self.ready[clock]
            self.current = task = queue.popleft()
            if not queue:
                del self.ready[heappop(self.clocks)]
            task.clock = clock
            task.greenlet.switch()
        else:
            self.hub.switch()
        self.charged, work.beyond = work.flops, 0.0

    def clock(self) -> float:
        """The current task's clock, with all that it has computed charged to it."""
        task = self.current
        flops, before = work.flops, task.clock
        if flops != self.charged or work.beyond:
            seconds = self.machine.compute(flops - self.charged, task.rank, work.beyond)
            if self.interrupted:
                seconds = self.interrupted[task.rank].compute(seconds)
            task.clock += seconds
            self.charged, work.beyond = flops, 0.0
        if self.crash_at and task.clock >= self.crash_at.get(task.rank, math.inf):
            # It may have crashed while it computed or waited, but not before its last message.
            task.clock = when = max(self.crash_at.pop(task.rank), before)
            raise Crash(f"rank {task.rank} crashes at {when} s, as the machine model has it")
        return task.clock

    def crash(self, rank: int) -> None:
        """``rank`` has crashed: none of its tasks runs again."""
        self.lost.add(rank)
        living = {at: [t for t in queue if t.rank != rank] for at, queue in self.ready.items()}
        self.ready = {at: deque(tasks) for at, tasks in living.items() if tasks}
        self.clocks = sorted(self.ready)  # a sorted list is a heap


class Interrupted:
    """A rank that computes, and pauses: ``compute`` adds the pauses that fall into a stretch.

    They lie at fixed places of its computing time, so it does not matter in which pieces that is
    charged.
    """

    def __init__(self, pauses: Pauses, seed: int, rank: int) -> None:
        self.pauses = pauses
        self.random = random.Random(f"pauses {seed} {rank}")
        self.until_next = self.random.expovariate(1 / pauses.every)  # seconds of computing

    def compute(self, seconds: float) -> float:
        """How long ``seconds`` of computing take."""
        paused = 0.0
        self.until_next -= seconds
        while self.until_next < 0:
            paused += self.pauses.length * self.random.expovariate(1.0)
            self.until_next += self.random.expovariate(1 / self.pauses.every)
        return seconds + paused


def describe(stuck: list[Task], ranks: int) -> str:
    """A line for each stuck task: what it waits for, and where in the user's code."""
    lines = [f"{len({task.rank for task in stuck})} of {ranks} ranks wait for what cannot come:"]
    sending = False
    for task in sorted(stuck, key=lambda task: (task.rank, task.stream)):
        stream = f" ({task.stream})" if task.stream else ""
        doing = task.doing
        if isinstance(doing, tuple):  # messages: those that have begun will come
            unmet = [transfer for transfer in doing if transfer.end < 0]
            sending = sending or (len(doing) == 1 and unmet[0].sending)
            doing = " and ".join(str(transfer) for transfer in unmet)
        place = users_line(task.greenlet.gr_frame) or "in minidist itself"
        lines.append(f"  rank {task.rank}{stream}: {doing}, {place}")
    if sending:
        lines.append(
            "a send returns when its receive has been posted: let one side receive first, "
            "or use sendrecv"
        )
    return "\n".join(lines)
