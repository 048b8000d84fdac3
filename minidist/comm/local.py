"""The local world: ranks inside one process, on a virtual clock.

Each rank is a greenlet: a function that can be paused inside a call and resumed later. Nothing to
install or launch, and ``print``, a debugger and a traceback work as in any function.

It is also a simulator. Every rank has a clock. Computing moves it by FLOPs over the machine's
speed; a message of n bytes takes α + n·β, from the moment when sender and receiver are both there
and the sender's outgoing and the receiver's incoming port are free, and holds both ports for that
long. The scheduler always resumes the rank whose clock is furthest behind, so nothing can happen
in a rank's past, and every run of a program is the same run, receive-from-anyone included. When
nobody can run, that is a ``Deadlock``, and it says who waits for what and where.
"""

from __future__ import annotations

import contextvars
import heapq
from collections import deque
from collections.abc import Callable
from traceback import walk_stack
from typing import Any

import greenlet

from minidist.array import Array, work
from minidist.comm.comm import ANY, Comm, CommError, Crash, Future, RankLost, Request
from minidist.comm.machine import Machine
from minidist.comm.trace import StreamTrace, Trace


class Deadlock(RuntimeError):
    """No rank can go on: each waits for a message, or a partner, that can never come."""


class _Task:
    """One stream of one rank: a greenlet with a clock."""

    __slots__ = ("clock", "doing", "greenlet", "rank", "stream", "waiting")

    def __init__(self, rank: int, stream: str, clock: float) -> None:
        self.rank = rank
        self.stream = stream
        self.clock = clock
        self.waiting = False
        self.doing: Any = None  # what it waits for, for the deadlock report
        self.greenlet: Any = None


class LocalWorld:
    """Runs a function on many ranks in this process.

    ``machine`` sets the speed of links and ranks; ``record=True`` keeps every event for timelines.
    After ``run``, ``seconds`` is the virtual time of the slowest rank and ``traces`` holds each
    rank's trace.
    """

    name = "local"
    library: str | None = None

    def __init__(self, machine: Machine | None = None, record: bool = False) -> None:
        self.machine = machine or Machine()
        self.record = record
        self.seconds = 0.0
        self.traces: list[Trace] = []

    def run(self, function: Callable[[Comm], Any], ranks: int) -> list[Any]:
        """``function(comm)`` on every rank; the list of what they return."""
        if ranks < 1:
            raise ValueError(f"a world needs at least one rank, not {ranks}")
        return _Run(self, ranks).run(function)


class _Run:
    """One run of a local world: clocks, ports, mailboxes and the scheduler."""

    def __init__(self, world: LocalWorld, ranks: int) -> None:
        self.machine = world.machine
        self.world = world
        self.ranks = ranks
        self.heap: list[tuple[float, int, _Task]] = []  # who can run, by clock
        self.order = 0  # breaks ties: first come, first served
        self.tasks: list[_Task] = []
        self.current: _Task
        self.error: BaseException | None = None
        self.out_free = [0.0] * ranks  # when each rank's outgoing port is free
        self.in_free = [0.0] * ranks
        self.charged = 0  # FLOPs on the counter when the current task was resumed
        # Messages whose other side has not come yet: (context, receiver) -> waiting transfers.
        self.sends: dict[tuple[Any, int], list[_Transfer]] = {}
        self.recvs: dict[tuple[Any, int], list[_Transfer]] = {}
        self.meetings: dict[Any, _Meeting] = {}
        self.lost: set[int] = set()  # ranks that crashed

    def run(self, function: Callable[[Comm], Any]) -> list[Any]:
        results: list[Any] = [None] * self.ranks
        self.hub = greenlet.getcurrent()

        def body(rank: int, comm: LocalComm) -> Callable[[], None]:
            def rank_body() -> None:
                results[rank] = function(comm)
                comm.time()  # charge what was computed since the last message

            return rank_body

        group = list(range(self.ranks))
        self.world.traces = [Trace(0.0, self.world.record) for _ in group]
        for rank in group:
            comm = LocalComm(self, group, rank, "world", self.world.traces[rank])
            self.start(rank, "", 0.0, body(rank, comm))
        try:
            while self.heap:
                clock, _, task = heapq.heappop(self.heap)
                if task.rank in self.lost:
                    continue  # another stream of a rank that crashed
                task.clock = clock
                task.waiting = False
                self.current = task
                self.charged = work.flops
                task.greenlet.switch()
                if self.error is not None:
                    raise self.error
            stuck = [task for task in self.tasks if task.waiting and task.rank not in self.lost]
            if stuck:
                raise Deadlock(_describe(stuck, self.ranks))
        finally:
            for task in self.tasks:
                if not task.greenlet.dead:
                    task.greenlet.throw(greenlet.GreenletExit)
        self.world.seconds = max(task.clock for task in self.tasks)
        return results

    def start(self, rank: int, stream: str, clock: float, body: Callable[[], None]) -> None:
        """A new task that runs ``body`` from ``clock`` on."""
        task = _Task(rank, stream, clock)

        def guarded() -> None:
            try:
                body()
            except greenlet.GreenletExit:
                pass  # the run is over: another rank failed
            except Crash:
                self.bury(rank)
            except BaseException as error:
                where = f"raised on rank {rank} of {self.ranks}{f' ({stream})' if stream else ''}"
                error.add_note(where + ", local world")
                self.error = error

        task.greenlet = greenlet.greenlet(guarded, parent=self.hub)
        # The rank inherits the caller's settings (dtype, no_grad), and then keeps its own.
        task.greenlet.gr_context = contextvars.copy_context()
        self.tasks = [other for other in self.tasks if not other.stream or not other.greenlet.dead]
        self.tasks.append(task)
        self.wake(task, clock)

    def bury(self, rank: int) -> None:
        """``rank`` has crashed: its messages that have not begun never will; tell who waits."""
        clock = self.clock()
        self.lost.add(rank)
        for mailboxes in (self.sends, self.recvs):
            for key, transfers in mailboxes.items():
                mailboxes[key] = [t for t in transfers if not t.belongs_to(rank)]
                for transfer in list(mailboxes[key]):
                    if transfer.waited and transfer.newly_lost() is not None:
                        mailboxes[key].remove(transfer)
                        self.wake(transfer.owner, max(clock, transfer.owner.clock))

    def wake(self, task: _Task, clock: float) -> None:
        """Let ``task`` go on when it is the furthest behind, at ``clock``."""
        self.order += 1
        heapq.heappush(self.heap, (clock, self.order, task))

    def pause(self, doing: Any = None) -> None:
        """Leave the current task; it has been, or will be, woken."""
        task = self.current
        task.waiting, task.doing = doing is not None, doing
        self.hub.switch()

    def advance(self, clock: float) -> None:
        """The current task goes on at ``clock``, after all tasks that are further behind."""
        task = self.current
        if self.heap and self.heap[0][0] < clock:
            self.wake(task, clock)
            self.pause()
        else:
            task.clock = clock

    def clock(self) -> float:
        """The current task's clock, with all that it has computed charged to it."""
        task = self.current
        if work.flops != self.charged:
            task.clock += self.machine.compute(work.flops - self.charged, task.rank)
            self.charged = work.flops
        return task.clock

    def post(self, transfer: _Transfer, mine: dict, theirs: dict) -> None:
        """One side of a message is there: start it if the other side is, else leave it waiting."""
        # Nobody may act in another rank's past: first those who are further behind.
        self.advance(self.clock())
        key = (transfer.context, transfer.receiver)
        transfer.posted = self.current.clock
        waiting = theirs.get(key)
        if waiting:
            for index, other in enumerate(waiting):
                if other.tag == transfer.tag and (
                    other.sender == transfer.sender or ANY in (other.sender, transfer.sender)
                ):
                    del waiting[index]
                    self.begin(*((transfer, other) if transfer.sending else (other, transfer)))
                    return
        mine.setdefault(key, []).append(transfer)

    def begin(self, send: _Transfer, recv: _Transfer) -> None:
        """Both sides of a message are there: move it as soon as both ports are free."""
        source, target = send.array, recv.array
        if source.size != target.size or source.dtype != target.dtype:
            raise CommError(
                f"rank {send.sender} sends {source.dtype}[{source.size}] and rank "
                f"{send.receiver} receives {target.dtype}[{target.size}] (tag {send.tag}): both "
                "sides of a message must agree on dtype and length"
            )
        sender, receiver = send.owner, recv.owner
        begin = max(
            send.posted, recv.posted, self.out_free[sender.rank], self.in_free[receiver.rank]
        )
        end = begin + self.machine.message(source.nbytes)
        self.out_free[sender.rank] = self.in_free[receiver.rank] = end
        target.reshape(-1)[...] = source.reshape(-1)
        recv.sender = send.sender
        for side in (send, recv):
            side.end = end
            if side.waited:  # its rank may have computed past the end before it waited
                self.wake(side.owner, max(end, side.owner.clock))


class _Transfer(Request):
    """One side of a message: a send or a receive."""

    __slots__ = (
        "array",
        "comm",
        "context",
        "end",
        "owner",
        "posted",
        "receiver",
        "run",
        "sender",
        "sending",
        "tag",
        "waited",
    )

    def __init__(
        self,
        comm: LocalComm,
        run: _Run,
        context: Any,
        sending: bool,
        sender: int,
        receiver: int,
        array: Array,
        tag: int,
    ) -> None:
        self.comm = comm
        self.run = run
        self.owner = run.current
        self.context = context
        self.sending = sending
        self.sender = sender
        self.receiver = receiver
        self.array = array
        self.tag = tag
        self.posted = 0.0
        self.end = -1.0  # not begun
        self.waited = False

    def wait(self) -> int:
        start = self.comm._enter()
        self.finish()
        kind, peer = ("send", self.receiver) if self.sending else ("recv", self.sender)
        self.comm.trace.communicated(
            f"wait {kind}", start, self.run.current.clock, self.array.nbytes, peer
        )
        return peer

    def finish(self) -> int:
        """``wait``, but untraced: part of a larger call."""
        run = self.run
        clock = run.clock()
        if self.end < 0:
            self._check_alive()
            self.owner = run.current
            self.waited = True
            run.pause(self)
            self._check_alive()
        elif self.end > clock:
            run.advance(self.end)
        return self.receiver if self.sending else self.sender

    def belongs_to(self, rank: int) -> bool:
        """Whether this side is the one of world rank ``rank``."""
        return self.owner.rank == rank

    def newly_lost(self) -> int | None:
        """A rank that crashed, without which this cannot begin or of which nobody told yet."""
        lost = self.run.lost
        if not lost or self.end >= 0:
            return None
        group = self.comm._group
        peer = self.receiver if self.sending else self.sender
        if peer != ANY:
            return peer if group[peer] in lost else None
        crashed = {rank for rank, world in enumerate(group) if world in lost}
        return min(crashed - self.comm._told_lost, default=None)

    def _check_alive(self) -> None:
        rank = self.newly_lost()
        if rank is None:
            return
        self.comm._told_lost.add(rank)
        key = (self.context, self.receiver)
        for mailboxes in (self.run.sends, self.run.recvs):
            if self in mailboxes.get(key, []):
                mailboxes[key].remove(self)
        raise RankLost(f"rank {self.comm.rank}: {self}: rank {rank} has crashed", rank)

    def test(self) -> bool:
        self.run.advance(self.run.clock())
        return 0 <= self.end <= self.run.current.clock

    def __str__(self) -> str:
        peer = f"to={self.receiver}" if self.sending else f"source={self.sender}"
        peer = peer.replace("source=-1", "source=ANY")
        call = "send" if self.sending else "recv"
        return f"{call}({self.array.dtype}[{self.array.size}], {peer}, tag={self.tag})"


class _Meeting:
    """A place where all ranks of a group must come: barrier and split."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.brought: dict[int, Any] = {}
        self.waiting: list[_Task] = []

    def __str__(self) -> str:
        return f"{self.name}, where only ranks {sorted(self.brought)} have come"


class _LocalFuture(Future):
    """A task on a rank's communication stream."""

    def __init__(self, run: _Run, trace: Trace) -> None:
        self.run = run
        self.trace = trace  # of the rank that waits
        self.result: Any = None
        self.end = -1.0
        self.waiter: _Task | None = None

    def done(self, result: Any) -> None:
        self.result, self.end = result, self.run.clock()
        if self.waiter is not None:
            self.run.wake(self.waiter, max(self.end, self.waiter.clock))

    def wait(self) -> Any:
        clock = self.run.clock()
        self.trace.computed(clock)
        if self.end < 0:
            self.waiter = self.run.current
            self.run.pause(self)
        elif self.end > clock:
            self.run.advance(self.end)
        self.trace.communicated("wait", clock, self.run.current.clock, 0, -1)
        return self.result

    def __str__(self) -> str:
        return "wait() for its communication stream"


class LocalComm(Comm):
    """A rank of the local world."""

    def __init__(self, run: _Run, group: list[int], rank: int, context: Any, trace: Trace) -> None:
        super().__init__(rank, len(group), trace)
        self._run = run
        self._group = group  # world ranks of this communicator
        self._context = context
        self._meetings = 0
        self._told_lost: set[int] = set()  # crashed ranks that a receive from anyone has reported
        self._stream: LocalComm | None = None
        # What the stream has to do: (spawned at, function, arguments, future).
        self._queue: deque[tuple[float, Callable[..., Any], tuple[Any, ...], _LocalFuture]]
        self._queue = deque()

    @property
    def machine(self) -> Machine:
        """The machine model that the clock runs on."""
        return self._run.machine

    def time(self) -> float:
        return self._run.clock()

    def _now(self) -> float:
        return self._run.current.clock

    def _charge_reduction(self, nbytes: int) -> None:
        self._run.current.clock += self._run.machine.reduce(nbytes)

    def _isend(self, array: Array, to: int, tag: int) -> _Transfer:
        transfer = _Transfer(self, self._run, self._context, True, self.rank, to, array, tag)
        self._run.post(transfer, self._run.sends, self._run.recvs)
        return transfer

    def _irecv(self, array: Array, source: int, tag: int) -> _Transfer:
        transfer = _Transfer(self, self._run, self._context, False, source, self.rank, array, tag)
        self._run.post(transfer, self._run.recvs, self._run.sends)
        return transfer

    def _send(self, array: Array, to: int, tag: int) -> None:
        self._isend(array, to, tag).finish()

    def _recv(self, array: Array, source: int, tag: int) -> int:
        return self._irecv(array, source, tag).finish()

    def _sendrecv(self, send: Array, to: int, recv: Array, source: int, tag: int) -> None:
        receiving = self._irecv(recv, source, tag)
        self._isend(send, to, tag).finish()
        receiving.finish()

    def _meet(self, name: str, bring: Any) -> dict[int, Any]:
        """Wait for all ranks of the group; returns what each brought."""
        run = self._run
        run.advance(run.clock())
        self._meetings += 1
        key = (self._context, self._meetings)
        meeting = run.meetings.setdefault(key, _Meeting(name))
        if meeting.name != name:
            raise CommError(f"rank {self.rank} called {name} where others called {meeting.name}")
        meeting.brought[self.rank] = bring
        if len(meeting.brought) < self.size:
            meeting.waiting.append(run.current)
            run.pause(meeting)
        else:
            del run.meetings[key]
            for task in meeting.waiting:
                run.wake(task, run.current.clock)
        return meeting.brought

    def barrier(self) -> None:
        start = self._enter()
        self._meet("barrier()", None)
        self.trace.communicated("barrier", start, self._now(), 0, -1)

    def split(self, color: int, key: int = 0) -> Comm:
        brought = self._meet("split()", (color, key))
        members = sorted(
            (other_key, rank)
            for rank, (other_color, other_key) in brought.items()
            if other_color == color
        )
        ranks = [rank for _, rank in members]
        context = (self._context, self._meetings, color)
        group = [self._group[rank] for rank in ranks]
        return LocalComm(self._run, group, ranks.index(self.rank), context, self.trace)

    def spawn(self, function: Callable[..., Any], *args: Any) -> Future:
        run = self._run
        now = run.clock()
        if self._stream is None:
            trace = StreamTrace(self.trace, now)
            self._stream = LocalComm(run, self._group, self.rank, (self._context, "stream"), trace)
        future = _LocalFuture(run, self.trace)
        self._queue.append((now, function, args, future))
        if len(self._queue) == 1:  # the stream was idle
            run.start(self._group[self.rank], "stream", now, self._drain)
        return future

    def _drain(self) -> None:
        """The communication stream: run what was spawned, one after the other."""
        stream = self._stream
        assert stream is not None  # spawn() made it
        while self._queue:
            spawned, function, args, future = self._queue[0]
            self._run.advance(max(self._run.clock(), spawned))  # nothing starts before its spawn
            stream.trace.resume(self._run.clock())
            result = function(stream, *args)
            stream.trace.computed(self._run.clock())
            self._queue.popleft()
            future.done(result)


def _describe(stuck: list[_Task], ranks: int) -> str:
    lines = [f"{len({task.rank for task in stuck})} of {ranks} ranks wait for what cannot come:"]
    for task in sorted(stuck, key=lambda task: (task.rank, task.stream)):
        stream = f" ({task.stream})" if task.stream else ""
        lines.append(f"  rank {task.rank}{stream}: {task.doing}, {_where(task)}")
    if any(isinstance(task.doing, _Transfer) and task.doing.sending for task in stuck):
        lines.append(
            "a send returns when its receive has been posted: let one side receive first, "
            "or use sendrecv"
        )
    return "\n".join(lines)


def _where(task: _Task) -> str:
    """The line of the user's code at which a paused task stands."""
    frames = list(walk_stack(task.greenlet.gr_frame))
    outside = [
        pair for pair in frames if not pair[0].f_globals.get("__name__", "").startswith("minidist.")
    ]
    frame, line = (outside or frames[::-1])[0]
    return f'at {frame.f_code.co_filename}:{line} in "{frame.f_code.co_name}"'
