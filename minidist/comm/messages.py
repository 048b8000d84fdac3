"""The messages of a rank, in either world: checked, counted, timed, and then carried.

A collective is written over the calls here: ``send``, ``recv``, ``sendrecv``, ``isend``, ``irecv``
and ``combine``. Each checks its arrays, counts the message, and passes it to the world's own
transport (the methods with an underscore, at the end). So no message is sent uncounted. Messages
are arrays, received into arrays that the receiver provides; nothing is pickled.

``send`` is synchronous: it returns when the receiver has the message. A program that only works
because a library happened to buffer a small message is wrong, and here it deadlocks at any size.

What is refused, and in which words, is in checks.py; what is recorded is in trace.py.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from traceback import walk_stack
from types import FrameType

import numpy as np

from minidist.comm.checks import (
    ANY,
    HOST,
    LARGEST_TAG,
    NUMBERS,
    check_alike,
    check_apart,
    check_flat,
    check_message,
)
from minidist.comm.errors import CollectiveMismatch, CommError, Disagreement
from minidist.comm.trace import NO_NAME, NamedStep, Step, Trace
from minidist.engine.array import Array, module_of, work

# NumPy's function, without its search for other libraries' arrays, which takes five times as long.
may_share_memory = getattr(np.may_share_memory, "_implementation", np.may_share_memory)
# Reductions by name, and the function of NumPy or CuPy that does each in place.
REDUCTIONS = {"sum": "add", "product": "multiply", "max": "maximum", "min": "minimum"}


class Request(ABC):
    """A send or receive under way. Its buffer must not be used until ``wait`` has returned."""

    @abstractmethod
    def wait(self) -> int:
        """Block until it is done. Returns the rank at the other end."""

    @abstractmethod
    def test(self) -> bool:
        """Whether it is done; does not block."""


class Messages(ABC):
    """Sends and receives between the ranks of a group: the part of ``Comm`` that collectives use.

    ``rank``: this one, of ``size``. ``world``: the number of each rank of the group in the whole
    world. ``label``: what the group's rounds are called, such as the axis of a mesh.
    """

    def __init__(self, rank: int, size: int, trace: Trace) -> None:
        self.rank = rank
        self.size = size
        self.trace = trace
        self.world: Sequence[int] = range(size)
        self.label = ""
        self._scratch: dict[tuple[type, np.dtype], Array] = {}

    def send(self, array: Array, to: int, tag: int = 0) -> None:
        """Send ``array`` to rank ``to``; returns when it has been received."""
        self._check("send to", array, to, tag)
        start = self._enter("send", array, to, tag=tag)
        self._send(array, to, tag)
        self._left("send", start, array.nbytes, to)

    def recv(self, array: Array, source: int = ANY, tag: int = 0) -> int:
        """Receive into ``array`` from rank ``source`` (``ANY``: whoever is first); returns who."""
        self._check("recv from", array, source, tag, into=True)
        start = self._enter("recv", None, ANY, array, source, tag)
        source = self._recv(array, source, tag)
        self._left("recv", start, array.nbytes, source)
        return source

    def sendrecv(self, send: Array, to: int, recv: Array, source: int, tag: int = 0) -> int:
        """Send one array and receive another at the same time, as each round of a ring does.

        Returns who sent it. The arrays must not share memory.
        """
        self._check("send to", send, to, tag)
        self._check("recv from", recv, source, tag, into=True)
        # Arrays that own their memory, or are views of different ones that do, cannot overlap.
        out = send if send.base is None else send.base
        into = recv if recv.base is None else recv.base
        apart = (
            out is not into and type(out) is type(into) is HOST and out.base is into.base is None
        )
        if not apart and not (
            type(send) is type(recv) is HOST and not may_share_memory(send, recv)
        ):
            check_apart(self.rank, send, to, recv, source)
        start = self._enter("sendrecv", send, to, recv, source, tag)
        source = self._sendrecv(send, to, recv, source, tag)
        self._left("sendrecv", start, send.nbytes, to, source)
        return source

    def isend(self, array: Array, to: int, tag: int = 0) -> Request:
        """Start a send and return at once; ``array`` must not change until ``wait()``."""
        self._check("isend to", array, to, tag)
        start = self._enter("isend", array, to, tag=tag)
        request = self._isend(array, to, tag)
        self._left("isend", start, array.nbytes, to)
        return request

    def irecv(self, array: Array, source: int = ANY, tag: int = 0) -> Request:
        """Start a receive into ``array``, which is valid only after ``wait()``."""
        self._check("irecv from", array, source, tag, into=True)
        self.trace.computed(self.time())
        return self._irecv(array, source, tag)

    def _check(self, call: str, array: Array, peer: int, tag: int, into: bool = False) -> None:
        """Raise CommError for an invalid message. Most are valid: that is found out quickly."""
        if (
            type(array) is HOST
            and type(peer) is int is type(tag)
            and 0 <= peer < self.size
            and 0 <= tag <= LARGEST_TAG
            and array.flags.carray  # contiguous, aligned and writeable
            and array.dtype in NUMBERS
        ):
            return
        check_message(self.rank, self.size, call, array, peer, tag, into)

    # What collectives need besides

    def flat(self, array: Array) -> Array:
        """``array`` in one dimension, in its own memory: what every collective works on.

        Raises CommError if it is not contiguous.
        """
        if not (type(array) is HOST and array.flags.carray and array.dtype in NUMBERS):  # as above
            check_flat(self.rank, array)
        return array if array.ndim == 1 else array.reshape(-1)

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

    def scratch(self, length: int, like: Array) -> Array:
        """A 1-D work array of ``like``'s dtype and device, kept for the next call.

        Its contents are arbitrary, and the next ``scratch`` call may return the same memory.
        """
        key = (type(like), like.dtype)
        buffer = self._scratch.get(key)
        if buffer is None or buffer.size < length:
            buffer = self._scratch[key] = module_of(like).empty(length, like.dtype)
        return buffer[:length]

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
            if trace.record:
                trace.computed(now)
            else:  # the same, in place: this is done for each message
                trace.busy += now - trace.mark
                trace.mark, trace.flops = now, None
        trace.call = (call, now, send, to, recv, source, tag)
        if send is not None and not counted:
            sent = trace.sent
            sent.messages += 1
            sent.nbytes += send.nbytes
        return now

    def _left(
        self, kind: str, start: float, nbytes: int = 0, peer: int = ANY, source: int = ANY
    ) -> None:
        """The call that began at ``start`` is over. ``peer``: of this group, or ``ANY``: nobody."""
        trace = self.trace
        trace.call = None
        trace.mark = self._now()
        if trace.record:
            peer, source = (self.world[rank] if rank >= 0 else -1 for rank in (peer, source))
            trace.communicated(kind, start, nbytes, peer, source)

    # Whether all ranks make the same call

    compares = False  # whether each call of a collective is compared: see agreement.py

    def _compare(self, call: str) -> None:
        """Raise CollectiveMismatch on every rank unless all make this ``call``."""
        if self.size == 1:
            return
        digest = int.from_bytes(blake2b(call.encode(), digest_size=8).digest(), "little")
        try:
            self._agree(digest, f"called {call}, {users_line(sys._getframe(1))}")
        except Disagreement as error:
            if " called " not in str(error):
                raise  # another rank's, about what ranks agree on
            raise CollectiveMismatch(str(error)) from None

    # What a world provides

    @abstractmethod
    def time(self) -> float:
        """Seconds on this world's clock: virtual in the local world, of the wall under MPI."""

    def _now(self) -> float:
        """The clock right after a call, when no computing is left to charge to it."""
        return self.time()

    def _charge_reduction(self, nbytes: int) -> None:  # noqa: B027 (only a virtual clock charges)
        """Charge the combining of ``nbytes`` to a virtual clock; a real clock needs nothing."""

    @abstractmethod
    def _agree(self, digest: int, text: str) -> None: ...

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


def users_line(frame: FrameType | None) -> str:
    """The innermost line outside this package, such as 'at train.py:31 in "main"'; or ''.

    Only names of files and functions are read, never variables.
    """
    ours = ("minidist.", "threading", "concurrent.", "runpy", "importlib")
    for outer, line in walk_stack(frame):
        if not outer.f_globals.get("__name__", "").startswith(ours):
            return f'at {outer.f_code.co_filename}:{line} in "{outer.f_code.co_name}"'
    return ""
