"""The Comm interface: what a rank can do, in either world.

A method or a collective is written once, over this class. Its sends and receives are in
messages.py. Here are the groups of ranks, what their ranks agree on and share, and the
communication stream. ``local/`` and ``mpi/`` each have a subclass, which is the world's own way to
do this.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from time import sleep
from typing import Any, TypeVar

from minidist.comm.checks import ANY, check_peer
from minidist.comm.choices import named
from minidist.comm.cross_memory import CrossMemory
from minidist.comm.errors import CommError, Crash, Disagreement, RankLost
from minidist.comm.machine import Machine
from minidist.comm.messages import Messages, Request
from minidist.comm.trace import Step, Trace
from minidist.engine.array import Array
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


class Future(ABC):
    """The result of a function that runs on a rank's communication stream: see ``Comm.spawn``."""

    @abstractmethod
    def wait(self) -> Any:
        """Block until the function has returned; its result."""


class Comm(Messages):
    """One rank's end of a group of ``size`` ranks, numbered 0 to ``size`` - 1."""

    agreeing_is_free = False  # whether ``agree`` takes no time on this world's clock
    folded = False  # whether this rank stands for all: then collectives go to ``run_folded``

    def __init__(
        self, rank: int, size: int, trace: Trace, machine: Machine, tuning: Any = None
    ) -> None:
        super().__init__(rank, size, trace)
        self.machine = machine  # for cost formulas; the local world's clock runs on it
        self.tuning = tuning  # the measured table of algorithms, if there is one
        self._main: Comm | None = None  # see ``main``
        self.learned: dict[str, str | None] = {}  # what it measured: see collectives/learn.py
        self._remembered: dict[Any, Any] = {}
        self._common: dict[Any, Any] = {}  # of ``once``

    def __deepcopy__(self, memo: Any) -> Comm:
        """The same communicator: a copied layer that sends goes on among the same ranks."""
        return self

    @staticmethod
    def from_mpi(comm: Any) -> Comm:
        """A Comm of the ranks of ``comm``, a communicator of mpi4py, in a program of your own.

        For all functions here that take a ``comm``, where ranks are not started by ``launch``.
        Every rank of ``comm`` must call it; the same communicator gives the same Comm again. Its
        messages are separate from those that you send on ``comm``. MPI must be running; no watchdog
        ends a job that hangs. ``close()``, on every rank, frees it, and raises CommError if a
        message was not received.

        Raises CommError for anything but an intracommunicator of mpi4py.

        >>> from mpi4py import MPI  # doctest: +SKIP
        >>> ring.all_reduce(Comm.from_mpi(MPI.COMM_WORLD), array)  # doctest: +SKIP
        """
        made: Comm = deferred("minidist.comm.mpi.adopted", "from_mpi")(comm)
        return made

    @cached_property
    def chosen(self) -> dict[tuple[int, int], str]:
        """What "auto" took in this group, by length and itemsize: see choices.py."""
        return self.trace.choices.setdefault(named(self.world), {})

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

        For what must be the same on all ranks and would show in no message, such as a batch or a
        seed. ``digest`` is 64 bits of it (``engine.digest``); ``shown`` says in the error what this
        rank has. Every rank must call it, in the same order; not counted as messages. In the local
        world no rank waits and no time passes: see agreement.py.

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

    def cross_memory(self) -> CrossMemory:
        """Access to arrays of the other ranks' own memory, while these do something else.

        Every rank must call it. What is copied is not counted as messages. Raises NoSharedMemory,
        on every rank, where the ranks are on several machines, or the system does not let them
        reach each other's memory.
        """
        return self._cross_memory()

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

        Every rank must call it. None where measured seconds would not describe the machine: in the
        local world, and where ranks outnumber cores.
        """
        return None

    # Time, and results that are kept

    def wait_for(self, source: int, tag: int = 0) -> None:
        """Before a ``recv`` that may wait long: sleep until ``source`` has sent.

        A receive polls all the time, which is quick but keeps a core busy; a server can sleep.
        """
        check_peer(self.rank, self.size, "wait_for", source, tag, into=True)
        self._wait_for(source, tag)

    def _wait_for(self, source: int, tag: int) -> None:
        """Sleep until a message is there."""

    def sleep(self, seconds: float) -> None:
        """Let so many seconds pass on this world's clock, in which this rank does nothing."""
        self.trace.computed(self.time())
        self._sleep(seconds)
        self.trace.resume(self._now())

    def _sleep(self, seconds: float) -> None:
        sleep(max(0.0, seconds))

    def remember(self, key: Any, make: Callable[[], T]) -> T:
        """What ``make()`` returned when this key was first asked for: sub-groups, choices."""
        if key not in self._remembered:
            self._remembered[key] = make()
        return self._remembered[key]

    def once(self, key: Any, make: Callable[[], T]) -> T:
        """What ``make()`` returns, made once for all ranks of the world in this process.

        For what is the same on all ranks that pass the same ``key``, such as a table. It must not
        be changed: ranks of the local world share it. In the MPI world each process makes its own.
        """
        if key not in self._common:
            self._common[key] = make()
        return self._common[key]

    # What a world provides

    @abstractmethod
    def _shared(self, length: int, like: Array) -> list[Array]: ...

    @abstractmethod
    def _cross_memory(self) -> CrossMemory: ...

    def __repr__(self) -> str:
        return f"{type(self).__name__}(rank={self.rank}, size={self.size})"
