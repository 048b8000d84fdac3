"""The MPI world: ranks are processes, messages are mpi4py's buffer calls.

The one file that knows mpi4py, and imports it only when an MPI world is made. Where ranks outnumber
cores, a waiting rank gives up its core between polls, so that the others get on. Arrays on a GPU
are staged through host memory: the MPI wheels cannot read a device's memory.
"""

from __future__ import annotations

import contextvars
import os
import time
from collections.abc import Callable
from concurrent.futures import Future as ThreadFuture
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from minidist.array import Array, module_of, to_host
from minidist.comm.comm import ANY, Comm, CommError, Future, Request, as_bytes
from minidist.comm.guard import abort_on_error
from minidist.comm.trace import StreamTrace, Trace


class LauncherError(RuntimeError):
    """The launcher and the MPI library do not belong together."""


class MpiWorld:
    """The processes that ``mpirun`` started; ``record=True`` keeps every event for timelines."""

    name = "mpi"

    def __init__(self, record: bool = False) -> None:
        from mpi4py import MPI

        self.mpi = MPI
        self.record = record
        self.rank = MPI.COMM_WORLD.Get_rank()
        self.size = MPI.COMM_WORLD.Get_size()

    @property
    def library(self) -> str:
        """The MPI library and its version, such as "MPICH 5.0.2" or "Open MPI 5.0.11"."""
        text = self.mpi.Get_library_version().replace("\x00", "")
        if text.startswith("MPICH"):
            return f"MPICH {text.split('Version:')[1].split()[0]}"
        return " ".join(text.split(",")[0].split()[:3]).replace(" v", " ")

    def check_size(self, launched: int) -> None:
        """Stop if ``mpirun`` started ``launched`` processes that do not know of each other."""
        if launched != self.size:
            raise LauncherError(
                f"mpirun started {launched} processes, but the MPI library of this Python "
                f"({self.library}) sees {self.size}: the mpirun belongs to another MPI. Use the "
                "one of the same installation, such as the mpirun beside this Python"
            )

    def run(self, function: Callable[[Comm], Any]) -> list[Any]:
        """``function(comm)`` on this rank; the list of what all ranks return."""
        world = self.mpi.COMM_WORLD
        with abort_on_error(self.rank, self.size, world.Abort):
            node = world.Split_type(self.mpi.COMM_TYPE_SHARED)
            crowded = node.Get_size() > len(os.sched_getaffinity(0))
            node.Free()
            trace = Trace(time.perf_counter(), self.record)
            comm = MpiComm(self.mpi, world.Dup(), trace, crowded)
            comm.barrier()
            result = function(comm)
            comm.barrier()
            # The one place where objects are pickled: the results of a run that is over, between
            # processes of one program.
            return world.allgather(result)


class MpiComm(Comm):
    """A rank of the MPI world."""

    def __init__(self, mpi: Any, comm: Any, trace: Trace, crowded: bool) -> None:
        super().__init__(comm.Get_rank(), comm.Get_size(), trace)
        self._mpi = mpi
        self._comm = comm
        self._crowded = crowded
        self._stream: MpiComm | None = None
        self._thread: ThreadPoolExecutor | None = None

    def time(self) -> float:
        return time.perf_counter()

    # Buffers

    def _outgoing(self, array: Array) -> np.ndarray:
        host = to_host(array)
        return as_bytes(host) if host.dtype.kind not in "iuf" or host.itemsize == 2 else host

    def _incoming(self, array: Array) -> np.ndarray:
        host = array if isinstance(array, np.ndarray) else np.empty(array.shape, array.dtype)
        return as_bytes(host) if host.dtype.kind not in "iuf" or host.itemsize == 2 else host

    def _received(self, status: Any, array: Array, host: np.ndarray) -> int:
        """Check a message that has come, bring it to its device, and say who sent it."""
        source, nbytes = status.Get_source(), status.Get_count(self._mpi.BYTE)
        if nbytes != array.nbytes:
            raise CommError(
                f"rank {self.rank} received {nbytes} bytes from rank {source} where it expected "
                f"{array.dtype}[{array.size}], {array.nbytes} bytes: both sides of a message must "
                "agree on dtype and length"
            )
        if not isinstance(array, np.ndarray):
            array[...] = module_of(array).asarray(host.view(array.dtype).reshape(array.shape))
        return source

    def _source(self, source: int) -> int:
        return self._mpi.ANY_SOURCE if source == ANY else source

    # Transport

    def _isend(self, array: Array, to: int, tag: int) -> Request:
        host = self._outgoing(array)
        return _MpiSend(self, self._comm.Isend(host, to, tag), host, to)

    def _irecv(self, array: Array, source: int, tag: int) -> Request:
        host = self._incoming(array)
        return _MpiRecv(self, self._comm.Irecv(host, self._source(source), tag), array, host)

    def _send(self, array: Array, to: int, tag: int) -> None:
        host = self._outgoing(array)
        if self._crowded:
            self._complete(self._comm.Isend(host, to, tag))
        else:
            self._comm.Send(host, to, tag)

    def _recv(self, array: Array, source: int, tag: int) -> int:
        if source == ANY:
            source = self._first_comer(tag)
        host = self._incoming(array)
        status = self._mpi.Status()
        if self._crowded:
            status = self._complete(self._comm.Irecv(host, self._source(source), tag))
        else:
            self._comm.Recv(host, self._source(source), tag, status)
        return self._received(status, array, host)

    def _sendrecv(self, send: Array, to: int, recv: Array, source: int, tag: int) -> None:
        out, host = self._outgoing(send), self._incoming(recv)
        status = self._mpi.Status()
        if self._crowded:
            receiving = self._comm.Irecv(host, source, tag)
            self._complete(self._comm.Isend(out, to, tag))
            status = self._complete(receiving)
        else:
            self._comm.Sendrecv(out, to, tag, host, source, tag, status)
        self._received(status, recv, host)

    def _first_comer(self, tag: int) -> int:
        """Who sends first: a server may wait long, so after 0.1 ms it sleeps between two looks.

        From 20 µs, each sleep is twice as long as the one before, up to 1 ms.
        """
        status, start, pause = self._mpi.Status(), self.time(), 2e-5
        while not self._comm.Iprobe(self._mpi.ANY_SOURCE, tag, status):
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
        self.trace.communicated("barrier", start, self.time(), 0, -1)

    def split(self, color: int, key: int = 0) -> Comm:
        return MpiComm(self._mpi, self._comm.Split(color, key), self.trace, self._crowded)

    def spawn(self, function: Callable[..., Any], *args: Any) -> Future:
        if self._thread is None:
            trace = StreamTrace(self.trace, self.time())
            self._stream = MpiComm(self._mpi, self._comm.Dup(), trace, self._crowded)
            self._thread = ThreadPoolExecutor(1, f"stream of rank {self.rank}")
        context = contextvars.copy_context()
        return _MpiFuture(self, self._thread.submit(context.run, self._run, function, *args))

    def _run(self, function: Callable[..., Any], *args: Any) -> Any:
        """On the communication thread: one spawned function."""
        stream = self._stream
        assert stream is not None  # spawn() made it
        stream.trace.resume(stream.time())
        result = function(stream, *args)
        stream.trace.computed(stream.time())
        return result


class _MpiSend(Request):
    """An ``Isend`` under way, which keeps its buffer alive."""

    def __init__(self, comm: MpiComm, request: Any, host: np.ndarray, to: int) -> None:
        self._comm, self._request, self._host, self._to = comm, request, host, to

    def wait(self) -> int:
        start = self._comm._enter()
        self._comm._complete(self._request)
        self._comm.trace.communicated("send", start, self._comm.time(), self._host.nbytes, self._to)
        return self._to

    def test(self) -> bool:
        return self._request.Test()


class _MpiRecv(Request):
    """An ``Irecv`` under way, into ``host``, which is ``array`` itself unless that is on a GPU."""

    def __init__(self, comm: MpiComm, request: Any, array: Array, host: np.ndarray) -> None:
        self._comm, self._request, self._array, self._host = comm, request, array, host
        self._source: int | None = None  # known when it is done

    def wait(self) -> int:
        if self._source is None:
            start = self._comm._enter()
            status = self._comm._complete(self._request)
            self._source = self._comm._received(status, self._array, self._host)
            end = self._comm.time()
            self._comm.trace.communicated("recv", start, end, self._array.nbytes, self._source)
        return self._source

    def test(self) -> bool:
        if self._source is None:
            status = self._comm._mpi.Status()
            if self._request.Test(status):
                self._source = self._comm._received(status, self._array, self._host)
        return self._source is not None


class _MpiFuture(Future):
    """A function on the communication thread."""

    def __init__(self, comm: MpiComm, future: ThreadFuture[Any]) -> None:
        self._comm, self._future = comm, future

    def wait(self) -> Any:
        start = self._comm._enter()
        result = self._future.result()
        self._comm.trace.communicated("wait", start, self._comm.time(), 0, -1)
        return result
