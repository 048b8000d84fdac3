"""A rank of the MPI world: messages are mpi4py's buffer calls.

Where ranks outnumber cores, a waiting rank gives up its core between polls, so that the others get
on. Arrays on a GPU are staged through host memory: the MPI wheels cannot read a device's memory.
"""

from __future__ import annotations

import contextvars
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from minidist.comm.comm import ANY, ITSELF, Comm, CommError, Future, Request, as_bytes
from minidist.comm.machine import Machine
from minidist.comm.mpi.requests import MpiFuture, MpiRecv, MpiSend
from minidist.comm.mpi.watchdog import abort_on_error
from minidist.comm.trace import StreamTrace, Trace
from minidist.engine.array import Array, SideStream, host_buffer, stage_in, stage_out, to_host

PIECE = 1 << 30  # bytes: longer messages go in pieces of this many
SHARED = "/dev/shm"  # where MPI libraries keep the memory that ranks share


def shared_memory_left() -> float:
    """Bytes that ranks can still share; more would be granted, and end the process when used."""
    try:
        found = os.statvfs(SHARED)
    except OSError:
        return float("inf")  # not Linux: somewhere else, of which we know nothing
    return found.f_bavail * found.f_frsize


class MpiComm(Comm):
    """A rank of the MPI world."""

    def __init__(
        self, mpi: Any, comm: Any, trace: Trace, crowded: bool, tuning: Any = None
    ) -> None:
        super().__init__(comm.Get_rank(), comm.Get_size(), trace, Machine(), tuning)
        self._mpi = mpi
        self._comm = comm
        self._crowded = crowded
        self._stream: MpiComm | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._windows_kept: list[Any] = []  # of shared(): freed with the process
        self._spawned: dict[Any, MpiFuture] = {}  # by thread, of this communicator and its parts

    time = _now = staticmethod(time.perf_counter)

    # Buffers: what MPI is given. Dtypes that it does not know go as bytes, and long messages in
    # pieces, because not every library counts past 2³¹.

    def _outgoing(self, array: Array) -> list[np.ndarray]:
        host = stage_out(array)
        if host is not array:
            self.trace.sent.staged += array.nbytes
        return self._pieces(host)

    def _incoming(self, array: Array) -> tuple[np.ndarray, list[np.ndarray]]:
        host = array if isinstance(array, np.ndarray) else host_buffer(array)
        return host, self._pieces(host)

    def _pieces(self, host: np.ndarray) -> list[np.ndarray]:
        if host.dtype.kind not in "iuf" or host.itemsize == 2:
            host = as_bytes(host)
        if host.nbytes <= PIECE:
            return [host]
        flat, length = host.reshape(-1), max(1, PIECE // host.itemsize)
        return [flat[start : start + length] for start in range(0, flat.size, length)]

    def _received(self, status: Any, piece: np.ndarray, array: Array) -> int:
        """Check that a message is as long as was expected, and say who sent it."""
        source, nbytes = status.Get_source(), status.Get_count(self._mpi.BYTE)
        if nbytes != piece.nbytes:
            raise CommError(
                f"rank {self.rank} received {nbytes} bytes from rank {source} where it expected "
                f"{array.dtype}[{array.size}], {piece.nbytes} bytes"
                + (" in this piece" if piece.nbytes < array.nbytes else "")
                + ": both sides of a message must agree on dtype and length"
            )
        return source

    def _arrived(self, array: Array, host: np.ndarray) -> None:
        """Bring what was received to the device where it was wanted."""
        if array is not host:
            stage_in(array, host)
            self.trace.sent.staged += array.nbytes

    def _source(self, source: int) -> int:
        return self._mpi.ANY_SOURCE if source == ANY else source

    # Transport

    def _isend(self, array: Array, to: int, tag: int) -> Request:
        pieces = self._outgoing(array)
        return MpiSend(self, [self._comm.Isend(piece, to, tag) for piece in pieces], array, to)

    def _irecv(self, array: Array, source: int, tag: int) -> MpiRecv:
        host, pieces = self._incoming(array)
        if source == ANY and len(pieces) > 1:
            raise CommError(
                f"rank {self.rank}: irecv of {array.nbytes} bytes from anyone: messages of more "
                f"than {PIECE} bytes come in pieces, so name the source, or use recv"
            )
        whom = self._source(source)
        requests = [self._comm.Irecv(piece, whom, tag) for piece in pieces]
        return MpiRecv(self, requests, pieces, array, host, source)

    def _send(self, array: Array, to: int, tag: int) -> None:
        for piece in self._outgoing(array):
            if self._crowded:
                self._complete(self._comm.Isend(piece, to, tag))
            else:
                self._comm.Send(piece, to, tag)

    def _recv(self, array: Array, source: int, tag: int) -> int:
        if source == ANY:
            source = self._first_comer(tag)
        host, pieces = self._incoming(array)
        for piece in pieces:
            status = self._mpi.Status()
            if self._crowded:
                status = self._complete(self._comm.Irecv(piece, self._source(source), tag))
            else:
                self._comm.Recv(piece, self._source(source), tag, status)
            source = self._received(status, piece, array)
        self._arrived(array, host)
        return source

    def _sendrecv(self, send: Array, to: int, recv: Array, source: int, tag: int) -> int:
        if self._crowded or max(send.nbytes, recv.nbytes) > PIECE:
            receiving = self._irecv(recv, source, tag)
            for piece in [self._comm.Isend(piece, to, tag) for piece in self._outgoing(send)]:
                self._complete(piece)
            return receiving.finish()
        (out,), (host, (into,)) = self._outgoing(send), self._incoming(recv)
        status = self._mpi.Status()
        self._comm.Sendrecv(out, to, tag, into, self._source(source), tag, status)
        source = self._received(status, into, recv)
        self._arrived(recv, host)
        return source

    def wait_for(self, source: int, tag: int = 0) -> None:
        start = self._enter()
        self._first_comer(tag, source)
        self._left("wait", start)

    def _first_comer(self, tag: int, source: int = ANY) -> int:
        """Who sends first: a server may wait long, so after 0.1 ms it sleeps between two looks.

        From 20 µs, each sleep is twice as long as the one before, up to 1 ms.
        """
        status, start, pause = self._mpi.Status(), self.time(), 2e-5
        while not self._comm.Iprobe(self._source(source), tag, status):
            if self.time() - start < 1e-4:
                os.sched_yield()
            else:
                time.sleep(pause)
                pause = min(2 * pause, 1e-3)
        return status.Get_source()

    def _complete(self, request: Any) -> Any:
        """Wait for an MPI request, without keeping a core from a rank that could work."""
        status = self._mpi.Status()
        if self._crowded:
            while not request.Test(status):
                os.sched_yield()
        else:
            request.Wait(status)
        return status

    # Groups and streams

    def barrier(self) -> None:
        start = self._enter()
        request = self._comm.Ibarrier()
        while not request.Test():
            if self.time() - start < 2e-3:
                os.sched_yield()
            else:  # this will take a while: let the others have the cores
                time.sleep(1e-3)
        self._left("barrier", start)

    def split(self, color: int, key: int = 0) -> Comm:
        start = self._enter()
        part = self._comm.Split(color, key)
        self._left("split", start)
        members = part.Get_group()
        theirs = members.Translate_ranks(list(range(part.Get_size())), self._comm.Get_group())
        comm = MpiComm(self._mpi, part, self.trace, self._crowded, self.tuning)
        comm.world = [self.world[rank] for rank in theirs]
        comm._spawned = self._spawned
        return comm

    def _shared(self, length: int, like: Array) -> list[Array]:
        if not isinstance(like, np.ndarray):
            raise CommError("shared() is for arrays on the host: a GPU's memory is its own")
        start = self._enter()
        node = self._comm.Split_type(self._mpi.COMM_TYPE_SHARED)
        here = node.Get_size()
        node.Free()
        if here < self.size:
            raise CommError(
                f"shared(): only {here} of {self.size} ranks share the memory of rank "
                f"{self.rank}'s machine: split the communicator by machine first"
            )
        nbytes = max(1, length) * like.itemsize  # not even an empty array may be without memory
        left = np.array([shared_memory_left()])
        self._comm.Allreduce(self._mpi.IN_PLACE, left, self._mpi.MIN)
        if left[0] < nbytes * self.size:
            raise CommError(
                f"shared(): {self.size} ranks ask for {nbytes} bytes each, and /dev/shm has not as "
                "much left: make it larger (docker run --shm-size=1g), or choose an algorithm that "
                "sends messages, such as 'ring'"
            )
        window = self._mpi.Win.Allocate_shared(nbytes, 1, comm=self._comm)
        self._windows_kept.append(window)
        buffers = [window.Shared_query(rank)[0] for rank in range(self.size)]
        np.frombuffer(buffers[self.rank], np.uint8).fill(0)  # taken now, so counted by the next
        self._comm.Barrier()
        self._left("shared", start)
        return [np.frombuffer(buffer, like.dtype, length) for buffer in buffers]

    def library(
        self, name: str, *buffers: Any, op: str | None = None, root: int | None = None
    ) -> None:
        start = self._enter()
        arrays, passed = [], []
        for buffer in buffers:
            array, *lengths = buffer if isinstance(buffer, tuple) else (buffer,)
            if array is ITSELF:
                passed.append(self._mpi.IN_PLACE)
            elif array is None or isinstance(array, list):
                passed.append(array)
            else:
                self._check(f"{name} at", array, self.rank, into=True)
                arrays.append((array, to_host(array)))
                passed.append([arrays[-1][1], *lengths] if lengths else arrays[-1][1])
        options: dict[str, Any] = {} if root is None else {"root": root}
        if op is not None:
            names = {"sum": "SUM", "product": "PROD", "max": "MAX", "min": "MIN"}
            if op not in names:
                raise CommError(f"unknown reduction {op!r}: choose one of {', '.join(names)}")
            options["op"] = getattr(self._mpi, names[op])
        getattr(self._comm, name)(*passed, **options)
        for array, host in arrays:
            self._arrived(array, host)
        self.trace.uncounted += 1
        self._left("library", start, sum(array.nbytes for array, _ in arrays))

    def spawn(self, function: Callable[..., Any], *args: Any) -> Future:
        if self._thread is None:
            start = self._enter()
            own = self._comm.Dup()
            self._left("spawn", start)
            trace = StreamTrace(self.trace, self.time())
            self._stream = MpiComm(self._mpi, own, trace, self._crowded, self.tuning)
            beside = MpiComm(self._mpi, self._comm, trace, self._crowded, self.tuning)
            self._stream.beside = beside
            self._stream.world = beside.world = self.world
            self._thread = ThreadPoolExecutor(1, f"stream of rank {self.rank}")
            self._side = SideStream()
        context = contextvars.copy_context()
        mark = self._side.mark()
        running = self._thread.submit(context.run, self._streaming, mark, function, *args)
        future = self._spawned[self._thread] = MpiFuture(self, running)
        return future

    def finish(self) -> None:
        """Wait for all that was spawned: a stream may not outlive its run."""
        for future in self._spawned.values():
            if not future.done():
                future.wait()  # the last of its thread, so all before it return, too

    def _clock_offset(self, rounds: int = 30) -> float:
        """Seconds to add to this rank's clock to have rank 0's (Cristian's algorithm).

        Each asks rank 0 for the time; the quickest answer is the best, and was read half way.
        """
        clock, quickest, offset = np.zeros(1), float("inf"), 0.0
        for rank in range(1, self.size):
            for _ in range(rounds if self.rank in (0, rank) else 0):
                if self.rank == 0:
                    self._recv(clock, rank, 0)
                    clock[0] = self.time()
                    self._send(clock, rank, 0)
                else:
                    start = self.time()
                    self._sendrecv(np.zeros(1), 0, clock, 0, 0)
                    end = self.time()
                    if end - start < quickest:
                        quickest, offset = end - start, clock[0] - (start + end) / 2
        return offset

    def _streaming(self, mark: Any, function: Callable[..., Any], *args: Any) -> Any:
        """On the communication thread: one spawned function."""
        stream = self._stream
        assert stream is not None  # spawn() made it
        stream.trace.resume(stream.time())
        abort = self._mpi.COMM_WORLD.Abort
        with abort_on_error(self.rank, self.size, abort), self._side.entered(mark):
            result = function(stream, *args)
        stream.trace.computed(stream.time())
        return result
