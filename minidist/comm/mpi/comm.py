"""A rank of the MPI world: its groups, what ranks agree on and share, and its second stream.

Its messages are in messages.py.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minidist.comm.agreement import TEXT, compare, debugging, packed, unpacked
from minidist.comm.checks import check_message
from minidist.comm.comm import IN_PLACE, Comm, Future
from minidist.comm.cross_memory import CrossMemory
from minidist.comm.errors import CommError
from minidist.comm.machine import Machine
from minidist.comm.mpi import buffers, cross_memory, windows
from minidist.comm.mpi.messages import MpiMessages
from minidist.comm.mpi.resources import Resources
from minidist.comm.mpi.stream import MpiFuture, Stream
from minidist.comm.trace import StreamTrace, Trace
from minidist.engine.array import Array, to_host

OPERATIONS = {"sum": "SUM", "product": "PROD", "max": "MAX", "min": "MIN"}  # ours, and MPI's


class MpiComm(MpiMessages):
    """A rank of the MPI world: ``comm`` is mpi4py's communicator, and ``mpi`` its module.

    ``crowded``: the machine has more ranks than cores.
    """

    def __init__(
        self,
        mpi: Any,
        comm: Any,
        trace: Trace,
        crowded: bool,
        tuning: Any = None,
        resources: Resources | None = None,
    ) -> None:
        super().__init__(comm.Get_rank(), comm.Get_size(), trace, Machine(), tuning)
        self._mpi = mpi
        self._comm = comm
        self._crowded = crowded
        self._stream: Stream | None = None
        self._resources = resources or Resources(mpi, comm)
        self._counts = self._resources.add(self)
        self.compares = debugging()
        self._spawned: dict[Stream, MpiFuture] = {}  # the last, of this communicator and its parts

    # Groups, and what the library does

    def barrier(self) -> None:
        if self.compares:
            self._compare("barrier()")
        start = self._enter("barrier")
        request = self._comm.Ibarrier()
        while not request.Test():
            if self.time() - start < 2e-3:
                os.sched_yield()
            else:  # this will take a while: leave the cores to the others
                time.sleep(1e-3)
        self._left("barrier", start)

    def split(self, color: int, key: int = 0) -> Comm:
        if self.compares:
            self._compare("split()")
        start = self._enter("split")
        self._resources.free_dropped()
        part = self._comm.Split(color, key)
        self._left("split", start)
        return self._part(part)

    def group(self, ranks: Sequence[int]) -> Comm:
        self._check_members(ranks)
        start = self._enter("group")
        self._resources.free_dropped()
        mine = self._comm.Get_group()
        chosen = mine.Incl(list(ranks))
        part = self._comm.Create_group(chosen)
        chosen.Free()
        mine.Free()
        self._left("group", start)
        return self._part(part)

    def _part(self, part: Any) -> Comm:
        """A communicator of some ranks of this one."""
        members, mine = part.Get_group(), self._comm.Get_group()
        theirs = members.Translate_ranks(list(range(part.Get_size())), mine)
        members.Free()
        mine.Free()
        comm = MpiComm(self._mpi, part, self.trace, self._crowded, self.tuning, self._resources)
        comm.world = [self.world[rank] for rank in theirs]
        comm._spawned = self._spawned
        return comm

    def _agree(self, digest: int, text: str) -> None:
        start = self._enter("agree")
        mine, every = np.array([digest], np.uint64), np.empty(self.size, np.uint64)
        self._complete(self._comm.Iallgather(mine, every))
        texts = np.empty((self.size, TEXT), np.uint8)
        differ = bool((every != every[0]).any())  # the same on every rank
        if differ:
            self._complete(self._comm.Iallgather(packed(text), texts))
        self._left("barrier", start)
        if differ:
            rows = zip(every.tolist(), map(unpacked, texts), strict=True)
            compare(dict(enumerate(rows)), self.size)

    def _shared(self, length: int, like: Array) -> list[Array]:
        if self.compares:
            self._compare(f"shared() of {like.dtype}[{length}]")
        start = self._enter("shared")
        try:
            window, arrays = windows.allocate(self._mpi, self._comm, length, like)
        except CommError:
            self.trace.call = None
            raise
        self._resources.windows.append((window, self, [weakref.ref(array) for array in arrays]))
        self._left("shared", start)
        return list(arrays)

    def _cross_memory(self) -> CrossMemory:
        addresses = self._shared(1, np.empty(0, np.int64))
        start = self._enter("cross_memory")
        try:
            memory = cross_memory.reach(self._mpi, self._comm, addresses)
        except CommError:
            self.trace.call = None
            raise
        self._left("shared", start)
        return memory

    def library(
        self, name: str, *arguments: Any, op: str | None = None, root: int | None = None
    ) -> None:
        if op is not None and op not in OPERATIONS:
            raise CommError(f"unknown reduction {op!r}: choose one of {', '.join(OPERATIONS)}")
        arrays, passed, nbytes = [], [], 0
        for argument in arguments:
            array, lengths = argument if type(argument) is tuple else (argument, None)
            if array is IN_PLACE:
                passed.append(self._mpi.IN_PLACE)
            elif array is None or type(array) is list:
                passed.append(array)
            else:
                check_message(self.rank, self.size, f"{name} at", array, self.rank, into=True)
                host = to_host(array)
                arrays.append((array, host))
                nbytes += array.nbytes
                passed.append(host if lengths is None else [host, lengths])
        options: dict[str, Any] = {} if root is None else {"root": root}
        if op is not None:
            options["op"] = getattr(self._mpi, OPERATIONS[op])
        start = self._enter(f"library {name}")
        getattr(self._comm, name)(*passed, **options)
        for array, host in arrays:
            buffers.arrived(array, host, self.trace.sent)
        self.trace.uncounted += 1
        self._left("library", start, nbytes)

    def unrecorded(self) -> Comm | None:
        return None if self._crowded or self.size == 1 else self.remember("unrecorded", self._copy)

    def _copy(self) -> Comm:
        """The same ranks, with a record of its own."""
        own, request = self._comm.Idup()
        self._complete(request)
        comm = MpiComm(self._mpi, own, Trace(self.time(), False), False, None, self._resources)
        comm.compares = False
        return comm

    # The communication stream

    def spawn(self, function: Callable[..., Any], *args: Any) -> Future:
        if self._stream is None:
            start = self._enter("spawn")
            own = self._comm.Dup()
            self._left("spawn", start)
            trace = StreamTrace(self.trace, self.time())
            settings = (trace, self._crowded, self.tuning, self._resources)
            comm = MpiComm(self._mpi, own, *settings)
            comm._main = MpiComm(self._mpi, self._comm, *settings)
            comm.world = comm._main.world = self.world
            comm.label = self.label
            self._stream = Stream(comm, self._mpi.COMM_WORLD.Abort)
        future = self._spawned[self._stream] = MpiFuture(self, self._stream.submit(function, *args))
        return future

    def finish(self) -> None:
        """Wait for all that was spawned: a stream may not outlive its run."""
        for stream, future in self._spawned.items():
            if not future.done():
                future.wait()  # the last of its stream, so all before it return, too
            stream.thread.shutdown()

    def close(self) -> None:
        """At the end of a launch: every message has been received; free what it has used.

        Raises CommError if a message was not received, or a receive not waited for.
        """
        start = self._enter("end of the launch")
        self._resources.close()
        self._left("barrier", start)
