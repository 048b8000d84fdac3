"""The local world: ranks inside one process, on a virtual clock.

Nothing to install or launch, and ``print``, a debugger and a traceback work as in any function.
It is also a simulator of the machine it is given: computing moves a rank's clock by FLOPs over the
machine's speed, a message of n bytes takes α + n·β and keeps a port of either side busy for that
long. Runs are deterministic, receive-from-anyone included. When no rank can run, it raises
``Deadlock``, with what each rank waits for, and where. How: ``simulator.py``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from minidist.comm.agreement import compare
from minidist.comm.comm import Comm, CommError, Disagreement, Future, Request
from minidist.comm.local.simulator import Simulator
from minidist.comm.local.tasks import Deadlock, Group, Task, Transfer
from minidist.comm.machine import Machine
from minidist.comm.trace import StreamTrace, Trace
from minidist.engine.array import Array, module_of

__all__ = ["Deadlock", "LocalComm", "LocalWorld"]


class LocalWorld:
    """Runs a function on many ranks in this process.

    ``machine`` sets the speed of links and ranks; ``record=True`` keeps every event for timelines.
    After ``run``, ``seconds`` is the virtual time of the slowest rank and ``traces`` holds each
    rank's trace; ``timeline.Timeline(traces)`` draws them.
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
        simulator = Simulator(self.machine, ranks)
        results: list[Any] = [None] * ranks
        group = simulator.group(list(range(ranks)))
        self.traces = [Trace(0.0, self.record) for _ in range(ranks)]

        def body(rank: int) -> Callable[[], None]:
            comm = LocalComm(simulator, group, rank, self.traces[rank])

            def rank_body() -> None:
                results[rank] = function(comm)
                comm.trace.computed(comm.time())  # since the last message

            return rank_body

        for rank in range(ranks):
            simulator.start(rank, "", 0.0, body(rank))
        self.seconds = simulator.run()
        simulator.check_received()
        return results


class LocalComm(Comm):
    """A rank of the local world."""

    agreeing_is_free = True

    def __init__(self, simulator: Simulator, group: Group, rank: int, trace: Trace) -> None:
        super().__init__(rank, len(group.ranks), trace, simulator.machine)
        self._simulator = simulator
        self._group = group
        self.world = group.ranks
        self._meetings = 0
        self._stream: LocalComm | None = None
        # What the stream has to do: (spawned at, function, arguments, future).
        self._queue: deque[tuple[float, Callable[..., Any], tuple[Any, ...], _LocalFuture]]
        self._queue = deque()
        self.time = simulator.clock  # type: ignore[method-assign]  # one call less a message

    def time(self) -> float:
        return self._simulator.clock()

    def _now(self) -> float:
        return self._simulator.current.clock

    def _charge_reduction(self, nbytes: int) -> None:
        self._simulator.current.clock += self._simulator.machine.reduce(nbytes)

    # Transport. Ranks with an earlier clock go first, so that no message is late. What the rank has
    # computed was charged to its clock by ``_enter``.

    def _transfer(
        self, sending: bool, sender: int, receiver: int, array: Array, tag: int
    ) -> Transfer:
        self._simulator.catch_up()
        task = self._simulator.current
        return self._simulator.post(
            Transfer(task, self._group, sending, sender, receiver, array, tag)
        )

    def _isend(self, array: Array, to: int, tag: int) -> Request:
        return _LocalRequest(self, self._transfer(True, self.rank, to, array, tag))

    def _irecv(self, array: Array, source: int, tag: int) -> Request:
        return _LocalRequest(self, self._transfer(False, source, self.rank, array, tag))

    def _send(self, array: Array, to: int, tag: int) -> None:
        self._simulator.complete(self._transfer(True, self.rank, to, array, tag))

    def _recv(self, array: Array, source: int, tag: int) -> int:
        receiving = self._transfer(False, source, self.rank, array, tag)
        self._simulator.complete(receiving)
        return receiving.sender

    def _sendrecv(self, send: Array, to: int, recv: Array, source: int, tag: int) -> int:
        simulator, group, rank = self._simulator, self._group, self.rank
        simulator.catch_up()
        task = simulator.current
        receiving = simulator.post(Transfer(task, group, False, source, rank, recv, tag))
        sending = simulator.post(Transfer(task, group, True, rank, to, send, tag))
        simulator.complete(sending, receiving)
        return receiving.sender

    # Groups and streams

    compares = True

    def _meet(self, name: str, bring: Any) -> dict[int, Any]:
        self._compare(name)
        self._meetings += 1
        return self._simulator.meet(self._group, self._meetings, self.rank, name, bring)

    def barrier(self) -> None:
        start = self._enter("barrier")
        self._meet("barrier()", None)
        self._left("barrier", start)

    def split(self, color: int, key: int = 0) -> Comm:
        brought = self._meet("split()", (color, key))
        groups = brought.setdefault(-1, {})  # color → (ranks, group), made by whoever is first
        if color not in groups:
            members = sorted(
                (other[1], rank)
                for rank, other in brought.items()
                if rank >= 0 and other[0] == color
            )
            ranks = [rank for _, rank in members]
            groups[color] = ranks, self._simulator.group([self._group.ranks[r] for r in ranks])
        ranks, group = groups[color]
        return LocalComm(self._simulator, group, ranks.index(self.rank), self.trace)

    def _agree(self, digest: int, text: str) -> None:
        """Nobody waits, so no clock moves: see agreement.py."""
        group = self._group
        if group.disagreement is not None:  # a rank that came first went on: it hears of it now
            raise Disagreement(str(group.disagreement))
        number = group.agreed[self.rank]
        group.agreed[self.rank] += 1
        claims = group.claims.setdefault(number, {})
        first = next(iter(claims.values()), (digest, text))
        claims[self.rank] = digest, text
        if first[0] != digest:
            try:
                compare(claims, self.size)
            except Disagreement as error:
                group.disagreement = error
                raise
        lost = self._simulator.lost
        if len(claims) + len(lost) < self.size:
            return
        if all(rank in claims or where in lost for rank, where in enumerate(group.ranks)):
            del group.claims[number]

    def _shared(self, length: int, like: Array) -> list[Array]:
        arrays = self._meet("shared()", module_of(like).zeros(length, like.dtype))
        for rank, array in arrays.items():
            if (array.size, array.dtype) != (length, like.dtype):
                raise CommError(
                    f"rank {self.rank} shares {like.dtype}[{length}] and rank {rank} "
                    f"{array.dtype}[{array.size}]: all must agree on dtype and length"
                )
        return [arrays[rank] for rank in range(self.size)]

    def spawn(self, function: Callable[..., Any], *args: Any) -> Future:
        now = self._simulator.clock()
        if self._stream is None:
            if self._group.stream is None:
                self._group.stream = self._simulator.group(self._group.ranks)
            trace = StreamTrace(self.trace, now)
            self._stream = LocalComm(self._simulator, self._group.stream, self.rank, trace)
            self._stream._main = LocalComm(self._simulator, self._group, self.rank, trace)
        future = _LocalFuture(self)
        self._queue.append((now, function, args, future))
        if len(self._queue) == 1:  # the stream was idle
            self._simulator.start(self._group.ranks[self.rank], "stream", now, self._drain)
        return future

    def _drain(self) -> None:
        """The communication stream: run what was spawned, one after the other."""
        stream, simulator = self._stream, self._simulator
        assert stream is not None  # spawn() made it
        while self._queue:
            spawned, function, args, future = self._queue[0]
            simulator.advance(max(simulator.clock(), spawned))  # it starts after its spawn
            stream.trace.resume(simulator.clock())
            result = function(stream, *args)
            stream.trace.computed(simulator.clock())
            self._queue.popleft()
            future.done(result)


class _LocalRequest(Request):
    """A send or receive that the rank did not wait for at once."""

    def __init__(self, comm: LocalComm, transfer: Transfer) -> None:
        self._comm, self._transfer = comm, transfer

    def wait(self) -> int:
        comm, transfer = self._comm, self._transfer
        kind = "wait send" if transfer.sending else "wait recv"
        start = comm._enter(kind)
        comm._simulator.complete(transfer)
        peer = transfer.receiver if transfer.sending else transfer.sender
        comm._left(kind, start, transfer.array.nbytes, peer)
        return peer

    def test(self) -> bool:
        now = self._comm._simulator.advance(self._comm._simulator.clock())
        return 0 <= self._transfer.end <= now


class _LocalFuture(Future):
    """A function on a rank's communication stream."""

    def __init__(self, comm: LocalComm) -> None:
        self._comm = comm
        self._result: Any = None
        self._end = -1.0
        self._waiter: Task | None = None

    def done(self, result: Any) -> None:
        simulator = self._comm._simulator
        self._result, self._end = result, simulator.clock()
        if self._waiter is not None:
            simulator.wake(self._waiter, max(self._end, self._waiter.clock))

    def wait(self) -> Any:
        simulator = self._comm._simulator
        start = self._comm._enter("wait")
        if self._end < 0:
            self._waiter = simulator.current
            simulator.pause(self)
        elif self._end > start:
            simulator.advance(self._end)
        self._comm._left("wait", start)
        return self._result

    def __str__(self) -> str:
        return "wait() for its communication stream"
