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
import sys
from collections import deque
from collections.abc import Callable
from functools import partial
from heapq import heappop, heappush
from typing import Any

import greenlet

from minidist.comm.errors import Crash
from minidist.comm.local.tasks import Deadlock, Task, describe
from minidist.comm.machine import Machine
from minidist.comm.ports import Interrupted
from minidist.engine.array import work


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
        # FLOPs on the counter that have been charged to a clock. Of the seconds beyond them, what
        # has been charged is taken from the counter.
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
                self._next()
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

    def _leave(self) -> None:
        """Run the tasks that are further behind, until the current one is the furthest behind."""
        if self.clocks and self.ready[self.clocks[0]][0].greenlet:
            self._next()
        else:  # none, or one not yet started: started from here, it would inherit our stack
            self.hub.switch()
        self.charged, work.beyond = work.flops, 0.0

    def _next(self) -> None:
        """Switch to the task that is furthest behind."""
        clock = self.clocks[0]
        queue = self.ready[clock]
        self.current = task = queue.popleft()
        if not queue:
            del self.ready[heappop(self.clocks)]
        task.clock = clock
        task.greenlet.switch()

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
            # While it computed or waited; not before what it has already sent.
            task.clock = when = max(self.crash_at.pop(task.rank), before)
            raise Crash(f"rank {task.rank} crashes at {when} s, as the machine model has it")
        return task.clock

    def crash(self, rank: int) -> None:
        """``rank`` has crashed: none of its tasks runs again."""
        self.lost.add(rank)
        living = {at: [t for t in queue if t.rank != rank] for at, queue in self.ready.items()}
        self.ready = {at: deque(tasks) for at, tasks in living.items() if tasks}
        self.clocks = sorted(self.ready)  # a sorted list is a heap
