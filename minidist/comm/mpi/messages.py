"""Messages of a rank of the MPI world: sent and received by mpi4py's buffer calls.

Where ranks outnumber cores, a waiting rank gives up its core between polls, so that the others can
work. What MPI is given for an array is in buffers.py, and what is under way in requests.py.
"""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np

from minidist.comm.checks import ANY, HOST
from minidist.comm.comm import Comm
from minidist.comm.errors import CommError
from minidist.comm.messages import Request
from minidist.comm.mpi import buffers
from minidist.comm.mpi.requests import MpiRecv, MpiSend
from minidist.comm.mpi.resources import Counts
from minidist.engine.array import Array


class MpiMessages(Comm):
    """What ``MpiComm`` does for one message."""

    _mpi: Any  # mpi4py's module
    _comm: Any  # and its communicator
    _crowded: bool
    _counts: Counts

    time = _now = staticmethod(time.perf_counter)

    def _isend(self, array: Array, to: int, tag: int) -> Request:
        self._counts.sent += 1
        pieces = self._outgoing(array)
        requests = [self._comm.Isend(piece, to, tag) for piece in pieces]
        return MpiSend(self, requests, array, to, tag)

    def _irecv(self, array: Array, source: int, tag: int) -> MpiRecv:
        host, pieces = self._incoming(array)
        if source == ANY and len(pieces) > 1:
            raise self._failed(
                f"rank {self.rank}: irecv of {array.nbytes} bytes from anyone: messages of more "
                f"than {buffers.PIECE} bytes come in pieces, so name the source, or use recv"
            )
        peer = self._source(source)
        requests = [self._comm.Irecv(piece, peer, tag) for piece in pieces]
        return MpiRecv(self, requests, pieces, array, host, source, tag)

    def _send(self, array: Array, to: int, tag: int) -> None:
        self._counts.sent += 1
        for piece in self._outgoing(array):
            if self._crowded:
                self._complete(self._comm.Isend(piece, to, tag))
            else:
                self._comm.Send(piece, to, tag)

    def _recv(self, array: Array, source: int, tag: int) -> int:
        if source == ANY:
            source = self._first_sender(tag)
        host, pieces = self._incoming(array)
        for piece in pieces:
            if self._crowded:
                status = self._complete(self._comm.Irecv(piece, self._source(source), tag))
            else:
                status = self._mpi.Status()
                self._comm.Recv(piece, self._source(source), tag, status)
            source = self._received(status, piece, array)
        self._counts.received += 1
        if host is not array:
            self._arrived(array, host, source)
        return source

    def _sendrecv(self, send: Array, to: int, recv: Array, source: int, tag: int) -> int:
        if self._crowded or max(send.nbytes, recv.nbytes) > buffers.PIECE - buffers.LABEL:
            receiving = self._irecv(recv, source, tag)
            self._counts.sent += 1
            for request in [self._comm.Isend(piece, to, tag) for piece in self._outgoing(send)]:
                self._complete(request)
            return receiving.finish()
        self._counts.sent += 1
        (out,) = self._outgoing(send)
        host, (into,) = self._incoming(recv)
        status = self._mpi.Status()
        self._comm.Sendrecv(out, to, tag, into, self._source(source), tag, status)
        source = self._received(status, into, recv)
        self._counts.received += 1
        if host is not recv:
            self._arrived(recv, host, source)
        return source

    def _as_it_is(self, array: Array) -> bool:
        """Whether MPI takes this array as it is: the usual case, without a look at buffers.py."""
        return (
            type(array) is HOST
            and array.dtype in buffers.KNOWN
            and array.nbytes <= buffers.PIECE
            and not self.compares
        )

    def _outgoing(self, array: Array) -> list[Array]:
        """What MPI is given to send ``array``, in pieces."""
        if self._as_it_is(array):
            return [array]
        return buffers.outgoing(array, self.trace.sent, self.compares)

    def _incoming(self, array: Array) -> tuple[Array, list[Array]]:
        """Memory for what ``array`` is to receive, whole and in pieces: the array if MPI can."""
        if self._as_it_is(array):
            return array, [array]
        return buffers.incoming(array, self.compares)

    def _wait_for(self, source: int, tag: int) -> None:
        start = self._enter("wait_for", source=source, tag=tag)
        self._first_sender(tag, source)
        self._left("wait", start)

    def _first_sender(self, tag: int, source: int = ANY) -> int:
        """Who sends first: a server may wait long, so after 0.1 ms it sleeps between two polls.

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
        """Wait for an MPI request; where ranks outnumber cores, let another rank run meanwhile."""
        status = self._mpi.Status()
        if self._crowded:
            while not request.Test(status):
                os.sched_yield()
        else:
            request.Wait(status)
        return status

    def _received(self, status: Any, piece: np.ndarray, array: Array) -> int:
        """Check the length of a message that has arrived; returns who sent it."""
        source, nbytes = status.Get_source(), status.Get_count(self._mpi.BYTE)
        if nbytes != piece.nbytes:
            self._counts.received += 1  # it is not lost, whatever the caller does now
            label = buffers.LABEL if self.compares and piece.nbytes < buffers.PIECE else 0
            raise self._unlike(
                f"{nbytes - label} bytes",
                source,
                f"{array.dtype}[{array.size}], {piece.nbytes - label} bytes"
                + (" in this piece" if piece.nbytes - label < array.nbytes else ""),
            )
        return source

    def _arrived(self, array: Array, host: Array, source: int) -> None:
        """A whole message is there. Raises CommError, in debug mode, if it has another dtype."""
        other = buffers.arrived(array, host, self.trace.sent)
        if other is not None:
            raise self._unlike(other, source, f"{array.dtype}[{array.size}]")

    def _unlike(self, received: str, source: int, expected: str) -> CommError:
        return self._failed(
            f"rank {self.rank} received {received} from rank {source} where it expected "
            f"{expected}: both sides of a message must agree on dtype and length"
        )

    def _source(self, source: int) -> int:
        return self._mpi.ANY_SOURCE if source == ANY else source

    def _failed(self, message: str) -> CommError:
        """The error of a call that ends here: the watchdog must not take it for one that waits."""
        self.trace.call = None
        return CommError(message)
