"""A rank of the local world: a communicator whose messages the simulator carries.

Before a message is posted, all ranks with an earlier clock run, so that messages are posted in the
order of time: see ``scheduler.py``. Communicators are made by ``simulator.join``, which the world
sets: it takes another class for a rank that stands for others (``folded.py``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from minidist.comm.agreement import compare
from minidist.comm.comm import Comm, CommError, Disagreement, Future, Request
from minidist.comm.cross_memory import CrossMemory, OneProcess
from minidist.comm.local.scheduler import Task
from minidist.comm.local.simulator import Group, Simulator, Transfer
from minidist.comm.trace import StreamTrace, Trace
from minidist.engine.array import Array, module_of


class LocalComm(Comm):
    """A rank of the local world."""

    agreeing_is_free = True

    def __init__(self, simulator: Simulator, group: Group, rank: int, trace: Trace) -> None:
        super().__init__(rank, len(group.ranks), trace, simulator.machine)
        self._simulator = simulator
        self._common = simulator.common
        self._group = group
        self._partly = group.living < len(group.ranks)  # some ranks are folded away
        self.world = group.ranks
        self._meetings = 0
        self._made: dict[tuple[int, ...], int] = {}  # groups of these members made so far
        self._stream: LocalComm | None = None
        # What the stream has to do: (spawned at, function, arguments, future).
        self._queue: deque[tuple[float, Callable[..., Any], tuple[Any, ...], _LocalFuture]]
        self._queue = deque()
        self.time = simulator.clock  # type: ignore[method-assign]  # saves a call for each message

    def time(self) -> float:
        return self._simulator.clock()

    def _now(self) -> float:
        return self._simulator.current.clock

    def _sleep(self, seconds: float) -> None:
        self._simulator.advance(self._now() + max(0.0, seconds))

    def _charge_reduction(self, nbytes: int) -> None:
        self._simulator.current.clock += self._simulator.machine.reduce(nbytes)

    # Transport. What the rank has computed was charged to its clock by ``_enter``.

    def _transfer(
        self, sending: bool, sender: int, receiver: int, array: Array, tag: int
    ) -> Transfer:
        if self._partly:
            self._check_alive(receiver if sending else sender)
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
        if self._partly:
            self._check_alive(to)
            self._check_alive(source)
        task = simulator.current
        if simulator.clocks and simulator.clocks[0] < task.clock:
            simulator.catch_up()
        receiving = simulator.post(Transfer(task, group, False, source, rank, recv, tag))
        sending = simulator.post(Transfer(task, group, True, rank, to, send, tag))
        simulator.complete(sending, receiving)
        return receiving.sender

    def _check_alive(self, peer: int) -> None:
        """Raise CommError if ``peer`` does not run, because another rank stands for it."""
        if peer < 0 or not self._simulator.alive(self._group.ranks[peer]):
            raise CommError(
                f"rank {self._group.ranks[self.rank]}: a message to or from rank {peer} of "
                f"{self.size}, of which some are folded: between ranks that are alike only "
                "collectives can be simulated. Run without fold=, or fold another axis"
            )

    # Groups and streams

    compares = True

    def _meet(self, name: str, value: Any) -> dict[int, Any]:
        self._compare(name)
        self._meetings += 1
        return self._simulator.meet(self._group, self._meetings, self.rank, name, value)

    def barrier(self) -> None:
        start = self._enter("barrier")
        self._meet("barrier()", None)
        self._left("barrier", start)

    def split(self, color: int, key: int = 0) -> Comm:
        if self._group.living < self.size:
            raise CommError(
                f"rank {self._group.ranks[self.rank]}: split() asks every rank for its color, and "
                f"{self.size - self._group.living} of {self.size} are folded and cannot say "
                "theirs: list the members, comm.group([...])"
            )
        values = self._meet("split()", (color, key))
        groups = values.setdefault(-1, {})  # color → (ranks, group), made by the first rank
        if color not in groups:
            members = sorted(
                (other[1], rank)
                for rank, other in values.items()
                if rank >= 0 and other[0] == color
            )
            ranks = [rank for _, rank in members]
            groups[color] = (
                ranks,
                self._simulator.group_of([self._group.ranks[rank] for rank in ranks]),
            )
        ranks, group = groups[color]
        return self._simulator.join(group, ranks.index(self.rank), self.trace)

    def group(self, ranks: Sequence[int]) -> Comm:
        self._check_members(ranks)
        members = tuple(self._group.ranks[rank] for rank in ranks)
        self._made[members] = number = self._made.get(members, 0) + 1
        groups = self._group.groups
        if (members, number) not in groups:
            groups[members, number] = self._simulator.group_of(members)
        return self._simulator.join(groups[members, number], ranks.index(self.rank), self.trace)

    def _agree(self, digest: int, text: str) -> None:
        """No rank waits, so no clock moves: see agreement.py."""
        group = self._group
        if group.disagreement is not None:  # found by another rank, after this one had gone on
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
        lost, dead = self._simulator.lost, 0
        if lost:
            dead = sum(w in lost and rank not in claims for rank, w in enumerate(group.ranks))
        if len(claims) + dead >= group.living:  # those folded away do not come
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

    def _cross_memory(self) -> CrossMemory:
        exposed = self._meet("cross_memory()", [])
        return OneProcess([exposed[rank] for rank in range(self.size)], self.rank)

    def spawn(self, function: Callable[..., Any], *args: Any) -> Future:
        now = self._simulator.clock()
        if self._stream is None:
            if self._group.stream is None:
                self._group.stream = self._simulator.group_of(self._group.ranks)
            trace = StreamTrace(self.trace, now)
            self._stream = self._simulator.join(self._group.stream, self.rank, trace)
            self._stream._main = self._simulator.join(self._group, self.rank, trace)
            self._stream.label = self.label
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
    """A send or receive under way."""

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
