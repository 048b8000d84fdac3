"""Messages under way in the MPI world: a send or a receive, in pieces if it is long."""

from __future__ import annotations

from typing import Any

import numpy as np

from minidist.comm.checks import ANY
from minidist.comm.errors import CommError
from minidist.comm.messages import Request
from minidist.comm.trace import describe_message
from minidist.engine.array import Array

MpiComm = Any  # minidist.comm.mpi.comm, which imports this file


class MpiSend(Request):
    """``Isend``s under way, of all pieces of ``array``, which is kept until they are done."""

    def __init__(self, comm: MpiComm, requests: list[Any], array: Array, to: int, tag: int) -> None:
        self._comm, self._requests, self._array = comm, requests, array
        self._to, self._tag = to, tag
        comm._counts.open[id(self)] = self  # its memory must stay, although the caller drops it

    def wait(self) -> int:
        array, to = self._array, self._to
        start = self._comm._enter("wait", array, to, tag=self._tag, counted=True)
        self.finish()
        self._comm._left("wait send", start, array.nbytes, to)
        return to

    def finish(self) -> None:
        """``wait``, but untraced."""
        for request in self._requests:
            self._comm._complete(request)
        self._comm._counts.open.pop(id(self), None)

    def test(self) -> bool:
        done = all(request.Test() for request in self._requests)
        if done:
            self._comm._counts.open.pop(id(self), None)
        return done


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
        tag: int,
    ) -> None:
        self._comm, self._array, self._host = comm, array, host
        self._left = list(zip(requests, pieces, strict=True))  # not yet received
        self._source, self._tag = source, tag  # from anyone: known when a piece is received
        comm._counts.open[id(self)] = self

    def wait(self) -> int:
        start = self._comm._enter("wait", None, ANY, self._array, self._source, self._tag)
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
        counts = self._comm._counts
        try:
            self._source = self._comm._received(status, piece, self._array)
        except CommError:
            counts.open.pop(id(self), None)
            raise
        if not self._left:
            counts.received += 1
            counts.open.pop(id(self), None)
            self._comm._arrived(self._array, self._host, self._source)

    def cancel(self) -> None:
        """Nobody sends: give up."""
        for request, _ in self._left:
            request.Cancel()
            request.Wait()

    def __str__(self) -> str:
        return describe_message("recv", self._array, "source", self._source, self._tag)
