"""A rank's communication stream in the MPI world: a thread with a communicator of its own.

A thread inside an MPI call releases the GIL, and so does NumPy: the two overlap.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future as ThreadFuture
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from minidist.comm.comm import Comm, Future
from minidist.comm.mpi.ending import abort_on_error
from minidist.engine.array import SideStream


class Stream:
    """The thread on which ``comm``, the stream's communicator, is used.

    ``abort(status)`` ends the job when a function raises.
    """

    def __init__(self, comm: Comm, abort: Callable[[int], None]) -> None:
        self.comm, self.abort = comm, abort
        self.thread = ThreadPoolExecutor(1, f"stream of rank {comm.rank}")
        self.side = SideStream()

    def submit(self, function: Callable[..., Any], *args: Any) -> ThreadFuture[Any]:
        """Run ``function(comm, *args)`` on the thread, after what was submitted before."""
        context = contextvars.copy_context()
        mark = self.side.mark()
        return self.thread.submit(context.run, self._run, mark, function, *args)

    def _run(self, mark: Any, function: Callable[..., Any], *args: Any) -> Any:
        comm, trace = self.comm, self.comm.trace
        trace.thread = threading.get_ident()
        trace.resume(comm.time())
        with abort_on_error(comm.rank, comm.size, self.abort), self.side.entered(mark):
            result = function(comm, *args)
        trace.computed(comm.time())
        return result


class MpiFuture(Future):
    """A function on the stream of ``comm``."""

    def __init__(self, comm: Comm, future: ThreadFuture[Any]) -> None:
        self._comm, self._future = comm, future

    def done(self) -> bool:
        """Whether it has returned."""
        return self._future.done()

    def wait(self) -> Any:
        start = self._comm._enter("wait")
        result = self._future.result()
        self._comm._left("wait", start)
        return result
