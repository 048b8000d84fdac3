"""The Comm interface: what a rank can do, in either world.

A method or a collective is written once, over this class. The public calls check the buffers,
count and time the message, and then pass it to the world's own transport (the methods with an
underscore), so nothing can be sent uncounted. Messages are arrays, received into arrays that the
receiver provides; nothing is ever pickled.

``send`` is synchronous: it returns when the receiver has the message. A program that only works
because a library happened to buffer a small message is wrong, and here it deadlocks at any size.
The checks are in checks.py, errors in errors.py, and what is recorded in trace.py.
"""

from __future__ import annotations

import sys
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from hashlib import blake2b
from time import sleep
from typing import Any, TypeVar

import numpy as np

from minidist.comm.calls import users_line
from minidist.comm.checks import (
    ANY,
    HOST,
    check_alike,
    check_apart,
    check_flat,
    check_message,
    check_peer,
)
from minidist.comm.choices import named
from minidist.comm.errors import CollectiveMismatch, CommError, Crash, Disagreement, RankLost
from minidist.comm.machine import Machine
from minidist.comm.requests import Future, Request
from minidist.comm.trace import NO_NAME, NamedStep, Step, Trace
from minidist.engine.array import Array, module_of, work
from minidist.lazy import deferred

__all__ = [
    "ANY",
    "IN_PLACE",
    "Comm",
    "CommError",
    "Crash",
    "Disagreement",
    "Future",
    "RankLost",
    "Request",
    "Step",
]

T = TypeVar("T")
IN_PLACE = object()  # as a buffer of ``Comm.library``: MPI's constant of that name

# Reductions by name, and the function of NumPy or CuPy that does each in place.
REDUCTIONS = {"sum": "add", "product": "multiply", "max": "maximum", "min": "minimum"}


class Comm(ABC):
    """One rank's end of a group of ``size`` ranks, numbered 0 to ``size`` - 1."""

    agreeing_is_free = False  # whether ``agree`` takes no time on this world's clock
    folded = False  # whether this rank stands for all: then collectives go to ``run_folded``

    def __init__(
        self, rank: int, size: int, trace: Trace, machine: Machine, tuning: Any = None
    ) -> None:
        self.rank = rank
        self.size = size
        self.trace = trace
        self.machine = machine  # what formulas are evaluated with; the local world runs on it
        self.tuning = tuning  # the measured table of algorithms, if there is one
        self.world: Sequence[int] = range(size)  # the ranks of this group in the whole world
        self.label = ""  # such as the axis of a mesh: what this group's rounds are called
        self._main: Comm | None = None  # see ``main``
        self.learned: dict[str, str | None] = {}  # what it measured: see collectives/learn.py
        self._remembered: dict[Any, Any] = {}
        self._common: dict[Any, Any] = {}  # of ``once``
        self._scratch: dict[tuple[Any, ...], Array] = {}

    def __deepcopy__(self, memo: Any) -> Comm:
        """The same communicator: a copied layer that sends goes on among the same ranks."""
        return self

    @staticmethod
    def from_mpi(comm: Any) -> Comm:
        """A Comm of the ranks of ``comm``, a communicator of mpi4py, in a program of your own.

        For all that takes a ``comm`` here, where ranks are not started by ``launch``. Every rank
        of ``comm`` must call it; the same communicator gives the same Comm again. It has messages
        of its own, so yours and ours do not mix. Needs MPI running, and nothing else; no watchdog
        ends a job that hangs. ``close()``, on every rank, frees it, and raises CommError if a
        message was not received.

        Raises CommError for what is no intracommunicator of mpi4py.

        >>> from mpi4py import MPI  # doctest: +SKIP
        >>> ring.all_reduce(Comm.from_mpi(MPI.COMM_WORLD), array)  # doctest: +SKIP
        """
        made: Comm = deferred("minidist.comm.mpi.adopted", "from_mpi")(comm)
        return made

    @cached_property
    def chosen(self) -> dict[tuple[int, int], str]:
        """What "auto" took in this group, by length and itemsize: see choices.py."""
        return self.trace.choices.setdefault(named(self.world), {})

    # Messages

    def send(self, array: Array, to: int, tag: int = 0) -> None:
        """Send ``array`` to rank ``to``; returns when it has been received."""
        check_message(self.rank, self.size, "send to", array, to, tag)
        start = self._enter("send", array, to, tag=tag)
        self._send(array, to, tag)
        self._left("send", start, array.nbytes, to)

    def recv(self, array: Array, source: int = ANY, tag: int = 0) -> int:
        """Receive into ``array`` from rank ``source`` (``ANY``: whoever is first); returns who."""
        check_message(self.rank, self.size, "recv from", array, source, tag, into=True)
        start = self._enter("recv", None, ANY, array, source, tag)
        source = self._recv(array, source, tag)
        self._left("recv", start, array.nbytes, source)
        return source

    def sendrecv(self, send: Array, to: int, recv: Array, source: int, tag: int = 0) -> int:
        """Send one array and receive another at the same time: what every ring is made of.

        Returns who sent it. The arrays must not share memory.
        """
        check_message(self.rank, self.size, "send to", send, to, tag)
        check_message(self.rank, self.size, "recv from", recv, source, tag, into=True)
        # Arrays that own their memory, or are views of different ones that do, cannot overlap.
        out = send if send.base is None else send.base
        into = recv if recv.base is None else recv.base
        if out is into or not (type(out) is type(into) is HOST and out.base is into.base is None):
            check_apart(self.rank, send, to, recv, source)
        start = self._enter("sendrecv", send, to, recv, source, tag)
        source = self._sendrecv(send, to, recv, source, tag)
        self._left("sendrecv", start, send.nbytes, to, source)
        return source

    def isend(self, array: Array, to: int, tag: int = 0) -> Request:
        """Start a send and return at once; ``array`` must not change until ``wait()``."""
        check_message(self.rank, self.size, "isend to", array, to, tag)
        start = self._enter("isend", array, to, tag=tag)
        request = self._isend(array, to, tag)
        self._left("isend", start, array.nbytes, to)
        return request

    def irecv(self, array: Array, source: int = ANY, tag: int = 0) -> Request:
        """Start a receive into ``array``, which is valid only after ``wait()``."""
        check_message(self.rank, self.size, "irecv from", array, source, tag, into=True)
        self.trace.computed(self.time())
        return self._irecv(array, source, tag)

    def wait_for(self, source: int, tag: int = 0) -> None:
        """Before a ``recv`` that may wait long: sleep until ``source`` has sent.

        A receive polls all the time, which is quick but keeps a core busy; a server can sleep.
        """
        check_peer(self.rank, self.size, "wait_for", source, tag, into=True)
        self._wait_for(source, tag)

    def flat(self, array: Array) -> Array:
        """``array`` in one dimension, in its own memory: what every collective works on.

        Raises CommError if it is not contiguous.
        """
        check_flat(self.rank, array)
        return array.reshape(-1)

    def combine(self, op: str, into: Array, other: Array) -> None:
        """Reduce ``other`` into ``into``, in place: "sum", "product", "max" or "min"."""
        name = REDUCTIONS.get(op)
        if name is None:
            raise CommError(f"unknown reduction {op!r}: choose one of {', '.join(REDUCTIONS)}")
        xp = np if type(into) is HOST else module_of(into)  # quicker for arrays on the host
        if into.dtype is not other.dtype or type(into) is not type(other):
            check_alike(self.rank, into, other)
        beyond = work.beyond
        getattr(xp, name)(into, other, out=into)
        work.beyond = beyond  # it costs γ a byte, no kernel
        self._charge_reduction(into.nbytes)

    # Groups and streams

    @abstractmethod
    def split(self, color: int, key: int = 0) -> Comm:
        """A communicator of all ranks that passed the same ``color``, ordered by (key, rank).

        Every rank must call it; not counted as messages.
        """

    @abstractmethod
    def group(self, ranks: Sequence[int]) -> Comm:
        """A communicator of these ranks of this one, in this order, of which this rank is one.

        Every member must call it, with the same list, and nobody else: not counted as messages.
        Raises CommError if this rank is no member, or a number is no rank or comes twice.
        """

    def _check_members(self, ranks: Sequence[int]) -> None:
        within = all(0 <= rank < self.size for rank in ranks)
        if self.rank not in ranks or not within or len(set(ranks)) < len(ranks):
            raise CommError(
                f"rank {self.rank}: group({list(ranks)}) needs different ranks of 0 to "
                f"{self.size - 1}, and {self.rank} among them"
            )

    @abstractmethod
    def barrier(self) -> None:
        """Wait until every rank has called this; for set-up and timing, so not counted."""

    def agree(self, what: str, digest: int, shown: str = "") -> None:
        """Raise ``Disagreement``, on every rank, unless all pass the same ``what`` and ``digest``.

        For what ranks must have alike and no message would show, such as a batch or a seed.
        ``digest`` is 64 bits of it (``engine.digest``); ``shown`` says in the error what this rank
        has. Every rank must call it, in the same order; not counted as messages. In the local world
        nobody waits and no time passes: see agreement.py.

        >>> comm.agree("the seed", digest(seed), f"seed {seed}")  # doctest: +SKIP
        """
        if self.size > 1:
            text = f"{what}: {shown}" if shown else what
            self._agree((digest ^ zlib.crc32(what.encode())) & (1 << 64) - 1, text)

    @abstractmethod
    def spawn(self, function: Callable[..., Any], *args: Any) -> Future:
        """Run ``function(stream, *args)`` on this rank's communication stream, meanwhile.

        ``stream`` is a Comm of the same ranks, separate from this one: a message sent on one is
        never received on the other. Functions spawned on one rank run one after the other, in
        order, so every rank must spawn the same ones in the same order. This is how communication
        overlaps computation. An exception there ends the run, as one on the rank itself does.
        ``stream.main`` is this communicator, for use on the stream: a rank that is server and
        worker runs the server there, and receives what the other ranks' workers send.
        """

    @property
    def main(self) -> Comm:
        """On a stream: the communicator that it was spawned from, to be used on the stream."""
        return self if self._main is None else self._main

    def shared(self, length: int, like: Array) -> list[Array]:
        """A 1-D array for each rank, by rank, in memory that all ranks share.

        Every rank must call it, and may read and write any of them: only messages order these
        accesses. Kept until the process ends. Raises CommError where ranks do not share memory:
        ``split`` by node first.
        """
        return self._shared(length, like)

    def library(
        self, name: str, *buffers: Any, op: str | None = None, root: int | None = None
    ) -> None:
        """The MPI library's own collective, such as "Allreduce", for comparison.

        ``buffers`` in the order of the MPI standard: an array, (array, lengths of its parts), a
        list of lengths, ``IN_PLACE``, or None where MPI wants nothing. Its messages are not
        counted.
        """
        raise CommError("the local world has no MPI library: run this under mpirun")

    def unrecorded(self) -> Comm | None:
        """A communicator of the same ranks, for measuring: its messages are counted nowhere.

        Every rank must call it. None where seconds would say nothing about the machine: in the
        local world, and where ranks outnumber cores.
        """
        return None

    # Time and names

    @abstractmethod
    def time(self) -> float:
        """Seconds on this world's clock: virtual in the local world, of the wall under MPI."""

    def sleep(self, seconds: float) -> None:
        """Let so many seconds pass on this world's clock, in which this rank does nothing."""
        self.trace.computed(self.time())
        self._sleep(seconds)
        self.trace.resume(self._now())

    def _sleep(self, seconds: float) -> None:
        sleep(max(0.0, seconds))

    def step(self, name: str, index: int | None = None, of: int | None = None) -> Step:
        """Name what happens inside, for the trace: ``with comm.step("forward", 3): ...``.

        ``step("all-gather", 2, 3)`` is drawn as "all-gather 2/3", and counted as "all-gather".
        """
        if not self.trace.record:
            return NO_NAME
        return NamedStep(self.trace, self.time, name, index, of)

    def rounds(self, name: str, count: int) -> Iterable[int]:
        """1 to ``count``, each a step: ``for round in comm.rounds("all-gather", 3): ...``."""
        numbers = range(1, count + 1)
        if not self.trace.record:
            return numbers
        return self._named(f"{self.label} {name}" if self.label else name, numbers)

    def _named(self, name: str, numbers: range) -> Iterator[int]:
        for number in numbers:
            with self.step(name, number, len(numbers)):
                yield number

    def scratch(self, length: int, like: Array) -> Array:
        """A 1-D work array of ``like``'s dtype and device, kept for the next call.

        Its contents are arbitrary, and the next ``scratch`` call may hand out the same memory.
        """
        key = (module_of(like), like.dtype)
        buffer = self._scratch.get(key)
        if buffer is None or buffer.size < length:
            buffer = self._scratch[key] = module_of(like).empty(length, like.dtype)
        return buffer[:length]

    def remember(self, key: Any, make: Callable[[], T]) -> T:
        """What ``make()`` returned when this key was first asked for: sub-groups, choices."""
        if key not in self._remembered:
            self._remembered[key] = make()
        return self._remembered[key]

    def once(self, key: Any, make: Callable[[], T]) -> T:
        """What ``make()`` returns, made once for all ranks of the world in this process.

        For what follows from the program alone, and is the same for all who pass the same ``key``:
        nobody may change it. Ranks of the local world share it; a rank that is a process of its
        own makes its own.
        """
        if key not in self._common:
            self._common[key] = make()
        return self._common[key]

    # The record of a call

    def _enter(
        self,
        call: str,
        send: Array | None = None,
        to: int = ANY,
        recv: Array | None = None,
        source: int = ANY,
        tag: int = 0,
        counted: bool = False,
    ) -> float:
        """A call of communication begins; returns the time.

        ``send`` is counted as a message, unless it is ``counted`` already.
        """
        now = self.time()
        trace = self.trace
        if now > trace.mark:
            trace.computed(now)
        trace.call = (call, now, send, to, recv, source, tag)
        if send is not None and not counted:
            sent = trace.sent
            sent.messages += 1
            sent.nbytes += send.nbytes
        return now

    def _left(
        self, kind: str, start: float, nbytes: int = 0, peer: int = ANY, source: int = ANY
    ) -> None:
        """The call that began at ``start``, with ``peer`` of this group or nobody, is over."""
        trace = self.trace
        trace.call = None
        trace.mark = self._now()
        if trace.record:
            peer, source = (self.world[rank] if rank >= 0 else -1 for rank in (peer, source))
            trace.communicated(kind, start, nbytes, peer, source)

    # What a world provides

    def _now(self) -> float:
        """The clock right after a call, when no computing is left to charge to it."""
        return self.time()

    def _wait_for(self, source: int, tag: int) -> None:  # noqa: B027 (a virtual clock may jump)
        """Sleep until a message is there."""

    compares = False  # whether ``_compare`` is to be called at each collective

    def _compare(self, call: str) -> None:
        """Raise CollectiveMismatch on every rank unless all make this ``call``, described."""
        if self.size == 1:
            return
        digest = int.from_bytes(blake2b(call.encode(), digest_size=8).digest(), "little")
        try:
            self._agree(digest, f"called {call}, {users_line(sys._getframe(1))}")
        except Disagreement as error:
            if " called " not in str(error):
                raise  # another rank's, of what ranks agree on
            raise CollectiveMismatch(str(error)) from None

    def _charge_reduction(self, nbytes: int) -> None:  # noqa: B027 (only a virtual clock charges)
        """Charge the combining of ``nbytes`` to a virtual clock; a real clock needs nothing."""

    @abstractmethod
    def _agree(self, digest: int, text: str) -> None: ...

    @abstractmethod
    def _shared(self, length: int, like: Array) -> list[Array]: ...

    @abstractmethod
    def _isend(self, array: Array, to: int, tag: int) -> Request: ...

    @abstractmethod
    def _irecv(self, array: Array, source: int, tag: int) -> Request: ...

    def _send(self, array: Array, to: int, tag: int) -> None:
        self._isend(array, to, tag).wait()

    def _recv(self, array: Array, source: int, tag: int) -> int:
        return self._irecv(array, source, tag).wait()

    def _sendrecv(self, send: Array, to: int, recv: Array, source: int, tag: int) -> int:
        receiving = self._irecv(recv, source, tag)
        self._isend(send, to, tag).wait()
        return receiving.wait()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(rank={self.rank}, size={self.size})"
