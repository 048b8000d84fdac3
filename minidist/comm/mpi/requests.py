"""What is under way in the MPI world: sends, receives, and functions on the stream."""

from __future__ import annotations

from concurrent.futures import Future as ThreadFuture
from typing import TYPE_CHECKING, Any

import numpy as np

from minidist.comm.comm import Future, Request
from minidist.engine.array import Array

if TYPE_CHECKING:
    from minidist.comm.mpi.comm import MpiComm


class MpiSend(Request):
    """``Isend``s under way, of all pieces; keeps the buffer alive."""

    def __init__(self, comm: MpiComm, requests: list[Any], array: Array, to: int) -> None:
        self._comm, self._requests, self._array, self._to = comm, requests, array, to

    def wait(self) -> int:
        start = self._comm._enter()
        for request in self._requests:
            self._comm._complete(request)
        self._comm._left("wait send", start, self._array.nbytes, self._to)
        return self._to

    def test(self) -> bool:
        return all(request.Test() for request in self._requests)


class MpiRecv(Request):
    """``Irecv``s under way into pieces of ``host``: ``array`` itself unless that is on a GPU."""

    def __init__(
        self,
        comm: MpiComm,
        requests: list[Any],
        pieces: list[np.ndarray],
        array: Array,
        host: np.ndarray,
        source: int,
    ) -> None:
        self._comm, self._array, self._host = comm, array, host
        self._left = list(zip(requests, pieces, strict=True))  # not yet received
        self._source = source  # who it was is known when a piece is done

    def wait(self) -> int:
        start = self._comm._enter()
        self.finish()
        self._comm._left("wait recv", start, self._array.nbytes, self._source)
        return self._source

    def finish(self) -> int:
        """``wait``, but untraced: part of a larger call."""
        while self._left:
            self._finished(self._comm._complete(self._left[0][0]))
        return self._source

    def test(self) -> bool:
        while self._left:
            status = self._comm._mpi.Status()
            if not self._left[0][0].Test(status):
                return False
            self._finished(status)
        return True

    def _finished(self, status: Any) -> None:
        _, piece = self._left.pop(0)
        self._source = self._comm._received(status, piece, self._array)
        if not self._left:
            self._comm._arrived(self._array, self._host)


class MpiFuture(Future):
    """A function on the communication thread."""

    def __init__(self, comm: MpiComm, future: ThreadFuture[Any]) -> None:
        self._comm, self._future = comm, future

    def done(self) -> bool:
        """Whether it has returned."""
        return self._future.done()

    def wait(self) -> Any:
        start = self._comm._enter()
        result = self._future.result()
        self._comm._left("wait", start)
        return result
