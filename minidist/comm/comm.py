"""The Comm interface: what a rank can do, in either world.

A method or a collective is written once, over this class. The public calls check the buffers,
count and time the message, and then hand it to the world's own transport (the methods with an
underscore), so nothing can be sent uncounted. Messages are arrays, received into arrays that the
receiver provides; nothing is ever pickled.

``send`` is synchronous: it returns when the receiver has the message. A program that only works
because a library happened to buffer a small message is wrong, and here it deadlocks at any size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from minidist.comm.machine import Machine
from minidist.comm.trace import Trace
from minidist.engine.array import Array, module_of

T = TypeVar("T")
ANY = -1  # as a source: receive from whoever sends first
HOST = np.ndarray  # arrays on the host: one look-up less a message
ITSELF = object()  # as a buffer of the MPI library: what lies in the other one, in place


class CommError(ValueError):
    """A message that cannot be: a bad buffer, a bad peer, or two sides that do not agree."""


class Crash(RuntimeError):
    """Raise it on a rank to let that rank die. In the local world it alone stops: what it had not
    sent is lost, and whoever waits for it gets ``RankLost``. Under MPI the whole job ends."""


class RankLost(CommError):
    """The rank at the other end has died: ``rank``, in the communicator's numbering.

    A receive from anyone raises it too, once for each rank that died.
    """

    def __init__(self, message: str, rank: int) -> None:
        super().__init__(message)
        self.rank = rank


# Reductions by name, and the function of NumPy or CuPy that does each in place.
REDUCTIONS = {"sum": "add", "product": "multiply", "max": "maximum", "min": "minimum"}


class Request(ABC):
    """A send or receive under way. The buffer belongs to it until ``wait`` has returned."""

    @abstractmethod
    def wait(self) -> int:
        """Block until it is done. Returns the rank at the other end."""

    @abstractmethod
    def test(self) -> bool:
        """Whether it is done; does not block."""


class Future(ABC):
    """The result of a function that runs on a rank's communication stream: see ``Comm.spawn``."""

    @abstractmethod
    def wait(self) -> Any:
        """Block until the function has returned; its result."""


class Comm(ABC):
    """One rank's end of a group of ``size`` ranks, numbered 0 to ``size`` - 1."""

    def __init__(
        self, rank: int, size: int, trace: Trace, machine: Machine, tuning: Any = None
    ) -> None:
        self.rank = rank
        self.size = size
        self.trace = trace
        self.machine = machine  # what formulas are evaluated with; the local world runs on it
        self.tuning = tuning  # the measured table of algorithms, if there is one
        self.world: Sequence[int] = range(size)  # the ranks of this group in the whole world
        self.beside: Comm | None = None  # see ``main``
        self.chosen: dict[tuple[int, int], str] = {}  # what "auto" took, by length and itemsize
        self._remembered: dict[Any, Any] = {}
        self._scratch: dict[tuple[Any, ...], Array] = {}

    # Messages

    def send(self, array: Array, to: int, tag: int = 0) -> None:
        """Send ``array`` to rank ``to``; returns when it has been received."""
        self._check("send to", array, to)
        start = self._enter(array.nbytes)
        self._send(array, to, tag)
        self._left("send", start, array.nbytes, to)

    def recv(self, array: Array, source: int = ANY, tag: int = 0) -> int:
        """Receive into ``array`` from rank ``source`` (``ANY``: whoever is first); returns who."""
        self._check("recv from", array, source, into=True)
        start = self._enter()
        source = self._recv(array, source, tag)
        self._left("recv", start, array.nbytes, source)
        return source

    def sendrecv(self, send: Array, to: int, recv: Array, source: int, tag: int = 0) -> int:
        """Send one array and receive another at the same time: what every ring is made of.

        Returns who sent it. The arrays must not share memory.
        """
        self._check("send to", send, to)
        self._check("recv from", recv, source, into=True)
        # Arrays that own their memory, or are views of different ones that do, cannot overlap.
        out = send if send.base is None else send.base
        into = recv if recv.base is None else recv.base
        if out is into or not (type(out) is type(into) is HOST and out.base is into.base is None):
            self._check_apart(send, to, recv, source)
        start = self._enter(send.nbytes)
        source = self._sendrecv(send, to, recv, source, tag)
        self._left("sendrecv", start, send.nbytes, to, source)
        return source

    def isend(self, array: Array, to: int, tag: int = 0) -> Request:
        """Start a send and return at once; ``array`` must not change until ``wait()``."""
        self._check("isend to", array, to)
        start = self._enter(array.nbytes)
        request = self._isend(array, to, tag)
        self._left("isend", start, array.nbytes, to)
        return request

    def irecv(self, array: Array, source: int = ANY, tag: int = 0) -> Request:
        """Start a receive into ``array``, which is valid only after ``wait()``."""
        self._check("irecv from", array, source, into=True)
        self._enter()
        return self._irecv(array, source, tag)

    def wait_for(self, source: int, tag: int = 0) -> None:  # noqa: B027 (a virtual clock may jump)
        """Before a ``recv`` that may take long: sleep until ``source`` has sent.

        A receive spins, to be quick, and keeps a core busy; a server has time.
        """

    def flat(self, array: Array) -> Array:
        """``array`` in one dimension, in its own memory: what every collective works on.

        Raises CommError if it is not contiguous: of such an array there is only a copy in one
        dimension, and nobody would see the result.
        """
        if not array.flags.c_contiguous:
            raise CommError(
                f"rank {self.rank}: a collective takes contiguous arrays, and the one of shape "
                f"{array.shape} is not: pass numpy.ascontiguousarray(...), and copy the result back"
            )
        return array.reshape(-1)

    def combine(self, op: str, into: Array, other: Array) -> None:
        """Reduce ``other`` into ``into``, in place: "sum", "product", "max" or "min"."""
        name = REDUCTIONS.get(op)
        if name is None:
            raise CommError(f"unknown reduction {op!r}: choose one of {', '.join(REDUCTIONS)}")
        xp = np if type(into) is HOST else module_of(into)  # the usual case, quickly
        if into.dtype is not other.dtype or type(into) is not type(other):
            self._check_alike(into, other)
        getattr(xp, name)(into, other, out=into)
        self._charge_reduction(into.nbytes)

    # Groups and streams

    @abstractmethod
    def split(self, color: int, key: int = 0) -> Comm:
        """A communicator of all ranks that passed the same ``color``, ordered by (key, rank).

        Every rank must call it; not counted as messages.
        """

    @abstractmethod
    def barrier(self) -> None:
        """Wait until every rank has come here; for set-up and timing, so not counted."""

    @abstractmethod
    def spawn(self, function: Callable[..., Any], *args: Any) -> Future:
        """Run ``function(stream, *args)`` on this rank's communication stream, meanwhile.

        ``stream`` is a Comm of the same ranks, apart from this one: messages of the two never
        meet. Functions spawned on one rank run one after the other, in order, so every rank must
        spawn the same ones in the same order. This is how communication overlaps computation.
        An exception there ends the run, as one on the rank itself does.
        ``stream.main`` is this communicator, for use on the stream: through it a server beside a
        worker hears the others' workers.
        """

    @property
    def main(self) -> Comm:
        """On a stream: the communicator that it was spawned from, to be used on the stream."""
        return self if self.beside is None else self.beside

    def shared(self, length: int, like: Array) -> list[Array]:
        """A 1-D array of each rank, by rank, in memory that all of them see.

        Every rank must call it, and may read and write any of them: only messages order what they
        do. Kept until the process ends. Raises CommError where ranks do not share memory:
        ``split`` by node first.
        """
        return self._shared(length, like)

    def library(
        self, name: str, *buffers: Any, op: str | None = None, root: int | None = None
    ) -> None:
        """The MPI library's own collective, such as "Allreduce", for comparison.

        ``buffers`` in the order of the MPI standard: an array, (array, lengths of its parts), a
        list of lengths, ``ITSELF`` for what is in place, or None where MPI wants nothing. Its
        messages are unseen.
        """
        raise CommError("the local world has no library to ask: run this under mpirun")

    # Time and names

    @abstractmethod
    def time(self) -> float:
        """Seconds on this world's clock: virtual in the local world, of the wall under MPI."""

    def step(self, name: str, index: int | None = None, of: int | None = None) -> Step:
        """Name what happens inside, for the trace: ``with comm.step("forward", 3): ...``.

        ``step("all-gather", 2, 3)`` is drawn as "all-gather 2/3", and counted as "all-gather".
        """
        return NamedStep(self, name, index, of) if self.trace.record else NO_NAME

    def rounds(self, name: str, count: int) -> Iterable[int]:
        """1 to ``count``, each a step: ``for round in comm.rounds("all-gather", 3): ...``."""
        numbers = range(1, count + 1)
        return self._named(name, numbers) if self.trace.record else numbers

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

    # Checks that every message passes

    def _enter(self, sending: int | None = None) -> float:
        """Communication begins now, perhaps with a message of so many bytes; returns the time."""
        now = self.time()
        trace = self.trace
        if now > trace.mark:
            trace.computed(now)
        if sending is not None:
            sent = trace.sent
            sent.messages += 1
            sent.nbytes += sending
        return now

    def _left(
        self, kind: str, start: float, nbytes: int = 0, peer: int = -1, source: int = -1
    ) -> None:
        """Communication that began at ``start``, with ``peer`` of this group or nobody, is over."""
        trace = self.trace
        trace.mark = self._now()
        if trace.record:
            peer, source = (self.world[rank] if rank >= 0 else -1 for rank in (peer, source))
            trace.communicated(kind, start, nbytes, peer, source)

    def _check(self, call: str, array: Array, peer: int, into: bool = False) -> None:
        if type(array) is HOST and 0 <= peer < self.size:  # the usual case, quickly
            flags = array.flags  # carray: contiguous, aligned and writeable
            if (flags.carray if into else flags.c_contiguous) and not array.dtype.hasobject:
                return
        if not (0 <= peer < self.size or (peer == ANY and into)):
            raise CommError(f"rank {self.rank}: {call} {peer}: ranks are 0 to {self.size - 1}")
        try:
            flags = array.flags
        except AttributeError:
            raise CommError(
                f"rank {self.rank}: {call} {peer} takes an array, not {type(array).__name__}: "
                "wrap numbers with numpy.array([...])"
            ) from None
        if not flags.c_contiguous:
            raise CommError(
                f"rank {self.rank}: {call} {peer}: the array of shape {array.shape} is not "
                "contiguous: " + ("receive into a contiguous one and copy" if into else "copy it")
            )
        if array.dtype.hasobject:
            raise CommError(f"rank {self.rank}: {call} {peer}: arrays of objects cannot be sent")
        if into and not getattr(flags, "writeable", True):
            raise CommError(f"rank {self.rank}: {call} {peer}: the array is read-only")

    def _check_apart(self, send: Array, to: int, recv: Array, source: int) -> None:
        xp = module_of(send)
        if xp is module_of(recv) and xp.may_share_memory(send, recv):  # contiguous: so they do
            raise CommError(
                f"rank {self.rank}: sendrecv to {to} and from {source}: the two arrays share "
                "memory, so what arrives would overwrite what is being sent: receive into another "
                "array, such as comm.scratch(...)"
            )

    def _check_alike(self, into: Array, other: Array) -> None:
        mine, theirs = module_of(into).__name__, module_of(other).__name__
        if (mine, into.dtype) != (theirs, other.dtype):
            raise CommError(
                f"rank {self.rank}: combine of {theirs} {other.dtype}[{other.size}] into {mine} "
                f"{into.dtype}[{into.size}]: both must be of one dtype, on one device"
            )

    # What a world provides

    def _now(self) -> float:
        """The clock right after a message, when there is nothing left to charge to it."""
        return self.time()

    def _charge_reduction(self, nbytes: int) -> None:  # noqa: B027 (only a virtual clock charges)
        """Let the clock know that ``nbytes`` were combined; real clocks know by themselves."""

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


class Step:
    """A stretch of a rank's work: what ``Comm.step`` returns. When nothing is recorded, no more."""

    __slots__ = ()

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


NO_NAME = Step()


class NamedStep(Step):
    """One that gives its name to what is recorded inside."""

    __slots__ = ("_comm", "_name")

    def __init__(self, comm: Comm, name: str, index: int | None, of: int | None) -> None:
        self._comm = comm
        self._name = (name, index, of)

    def __enter__(self) -> None:
        trace = self._comm.trace
        trace.computed(self._comm.time())
        trace.names.append(self._name)

    def __exit__(self, *error: object) -> None:
        trace = self._comm.trace
        trace.computed(self._comm.time())
        trace.names.pop()


def as_bytes(array: np.ndarray) -> np.ndarray:
    """The same memory as 1-D bytes, for dtypes that a transport does not know."""
    return array.reshape(-1).view(np.uint8)
