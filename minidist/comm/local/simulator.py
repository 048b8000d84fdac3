"""The simulator: paused functions, a clock for each, ports, and messages that wait for a partner.

Every stream of every rank is a ``Task``: a greenlet, a function that can be paused inside a call
and resumed later, with a clock of its own. The rule that keeps the clocks honest: *the task that
runs is always the one furthest behind*. So what it does cannot affect events that came earlier,
and every run of a program is the same run.

A message begins when both sides have posted it and both ports are free; how long it takes is the
machine's rule (``Machine.message`` and ``Ports`` in ``comm/machine.py``).
"""

from __future__ import annotations

import contextvars
from collections import deque
from collections.abc import Callable
from functools import partial
from heapq import heappop, heappush
from typing import Any

import greenlet

from minidist.comm.comm import ANY, CommError, Crash, RankLost
from minidist.comm.local.tasks import Deadlock, Group, Meeting, Task, Transfer, describe
from minidist.comm.machine import Interrupted, Links, Machine, Ports
from minidist.engine.array import module_of, work


class Simulator:
    """One run of a local world: clocks, ports and the scheduler."""

    def __init__(self, machine: Machine, ranks: int) -> None:
        self.machine = machine
        self.links = None if machine.even else Links(machine)
        self.interrupted: list[Interrupted] = []  # by rank, if the machine has pauses
        if machine.pauses is not None:
            make = partial(Interrupted, machine.pauses, machine.seed)
            self.interrupted = [make(rank) for rank in range(ranks)]
        self.ranks = ranks
        self.clocks: list[float] = []  # a heap: the clocks of those who can run, each once
        self.ready: dict[float, deque[Task]] = {}  # who they are: first come, first served
        self.tasks: list[Task] = []
        self.current: Task
        self.error: BaseException | None = None
        self.ports = Ports(ranks)
        self.charged = 0  # FLOPs on the counter that have been charged to a clock
        self.lost: set[int] = set()  # ranks that crashed

    # Tasks

    def run(self) -> float:
        """Run all tasks to their end; returns the clock of the slowest."""
        self.hub = greenlet.getcurrent()
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
        return max(task.clock for task in self.tasks)

    def start(self, rank: int, stream: str, clock: float, body: Callable[[], None]) -> None:
        """A new task that runs ``body`` from ``clock`` on."""
        task = Task(rank, stream, clock)

        def guarded() -> None:
            self.charged = work.flops
            try:
                body()
            except greenlet.GreenletExit:
                pass  # the run is over: another rank failed
            except Crash:
                self._bury(rank)
            except BaseException as error:
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
        """Let ``task`` go on when it is the furthest behind, at ``clock``."""
        queue = self.ready.get(clock)
        if queue is None:
            queue = self.ready[clock] = deque()
            heappush(self.clocks, clock)
        queue.append(task)

    def pause(self, doing: Any) -> None:
        """Leave the current task, which waits to be woken; whoever is furthest behind goes on."""
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
        """Let whoever is furthest behind go on, until the current task is."""
        if self.clocks and self.ready[self.clocks[0]][0].greenlet:
            self._next()
        else:  # nobody, or one not yet started: started from here, it would inherit our stack
            self.hub.switch()
        self.charged = work.flops

    def _next(self) -> None:
        """Whoever is furthest behind goes on."""
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
        flops = work.flops
        if flops != self.charged:
            seconds = self.machine.compute(flops - self.charged, task.rank)
            if self.interrupted:
                seconds = self.interrupted[task.rank].compute(seconds)
            task.clock += seconds
            self.charged = flops
        return task.clock

    # Messages

    def post(self, transfer: Transfer) -> Transfer:
        """One side of a message is there: start it if the other side is, else leave it waiting."""
        mine, theirs = transfer.group.recvs, transfer.group.sends
        if transfer.sending:
            mine, theirs = theirs, mine
        waiting = theirs[transfer.receiver]
        sender = transfer.sender
        for index, other in enumerate(waiting):
            if other.tag == transfer.tag and (
                other.sender == sender or other.sender == ANY or sender == ANY
            ):
                if other.task.rank in self.lost:
                    continue  # it crashed before the message began
                del waiting[index]
                if transfer.sending:
                    self._begin(transfer, other)
                else:
                    self._begin(other, transfer)
                return transfer
        mine[transfer.receiver].append(transfer)
        return transfer

    def _begin(self, send: Transfer, recv: Transfer) -> None:
        """Both sides of a message are there: move it as soon as both ports are free."""
        source, target = send.array, recv.array
        kind = source.dtype
        if source.size != target.size or (kind is not target.dtype and kind != target.dtype):
            raise CommError(
                f"rank {send.sender} sends {kind}[{source.size}] and rank "
                f"{send.receiver} receives {target.dtype}[{target.size}] (tag {send.tag}): both "
                "sides of a message must agree on dtype and length"
            )
        if type(source) is not type(target) and module_of(source) is not module_of(target):
            raise CommError(
                f"rank {send.sender} sends an array of {module_of(source).__name__} and rank "
                f"{send.receiver} receives into one of {module_of(target).__name__} (tag "
                f"{send.tag}): both sides of a message must be on the host, or both on a device"
            )
        sender, receiver = send.task.rank, recv.task.rank
        nbytes = source.nbytes
        if self.links is None:
            seconds = self.machine.message(nbytes)
        else:
            seconds = self.links.message(sender, receiver, nbytes)
        end = self.ports.carry(sender, receiver, max(send.posted, recv.posted), seconds)
        if source.ndim == target.ndim == 1:
            target[...] = source
        else:
            target.reshape(-1)[...] = source.reshape(-1)
        recv.sender = send.sender
        for side in (send, recv):
            side.end = end
            if side.waited:
                task = side.task
                task.until = max(task.until, end)
                task.pending -= 1
                if not task.pending:
                    self.wake(task, task.until)

    def complete(self, *transfers: Transfer) -> None:
        """Wait until all of the current task's ``transfers`` are through."""
        task = self.current
        until = task.clock
        if self.lost:
            self._check_partners(transfers)
        for transfer in transfers:
            if transfer.end < 0:
                transfer.task = task  # who waits need not be who posted
                transfer.waited = True
                task.pending += 1
            elif transfer.end > until:
                until = transfer.end
        if task.pending:
            task.until = until
            self.pause(transfers)
            if self.lost:
                self._check_partners(transfers)
        else:
            self.advance(until)

    # Crashes

    def _bury(self, rank: int) -> None:
        """``rank`` has crashed: its messages that have not begun never will; tell who waits."""
        clock = self.clock()
        self.lost.add(rank)
        living = {at: [t for t in queue if t.rank != rank] for at, queue in self.ready.items()}
        self.ready = {at: deque(tasks) for at, tasks in living.items() if tasks}
        self.clocks = sorted(self.ready)  # which is a heap
        for task in self.tasks:
            if task.rank in self.lost or not task.pending:
                continue
            if any(self._lost_partner(transfer) is not None for transfer in task.doing):
                task.pending = 0
                for transfer in task.doing:
                    transfer.waited = False
                self.wake(task, max(clock, task.clock))

    def _lost_partner(self, transfer: Transfer) -> int | None:
        """The crashed rank without which this cannot begin; for a receive from anyone, one that
        the receiver has not heard of yet."""
        if transfer.end >= 0:
            return None
        world = transfer.group.ranks
        peer = transfer.receiver if transfer.sending else transfer.sender
        if peer != ANY:
            return peer if world[peer] in self.lost else None
        crashed = {rank for rank, other in enumerate(world) if other in self.lost}
        return min(crashed - transfer.group.told[transfer.receiver], default=None)

    def _check_partners(self, transfers: tuple[Transfer, ...]) -> None:
        """Raise RankLost if one of ``transfers`` waits for a rank that crashed."""
        for transfer in transfers:
            rank = self._lost_partner(transfer)
            if rank is None:
                continue
            if not transfer.sending:
                transfer.group.told[transfer.receiver].add(rank)
            for other in transfers:
                if other.end < 0:  # nobody waits for it any more
                    boxes = other.group.sends if other.sending else other.group.recvs
                    boxes[other.receiver].remove(other)
            raise RankLost(f"{transfer}: rank {rank} has crashed", rank)

    # Meetings

    def meet(self, group: Group, number: int, rank: int, name: str, bring: Any) -> dict[int, Any]:
        """Wait for all ranks of the group; returns what each brought."""
        self.advance(self.clock())
        meeting = group.meetings.setdefault(number, Meeting(name))
        if meeting.name != name:
            raise CommError(f"rank {rank} called {name} where others called {meeting.name}")
        meeting.brought[rank] = bring
        if len(meeting.brought) < len(group.ranks):
            meeting.waiting.append(self.current)
            self.pause(meeting)
        else:
            del group.meetings[number]
            for task in meeting.waiting:
                self.wake(task, self.current.clock)
        return meeting.brought
