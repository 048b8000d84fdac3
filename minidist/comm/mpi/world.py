"""The MPI world: ranks are the processes that ``mpirun`` started.

What a process has once, whatever it launches, is in ``process.py``. Each launch has communicators
of its own, so that no message of one is received in another, and frees them at its end.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from minidist.comm.comm import Comm
from minidist.comm.mpi.comm import MpiComm
from minidist.comm.mpi.ending import abort_on_error
from minidist.comm.mpi.process import from_rank_0, join, poll
from minidist.comm.trace import Trace
from minidist.comm.tuning import load_table, usable
from minidist.engine.array import share_gpus


class LauncherError(RuntimeError):
    """The launcher belongs to another MPI library than mpi4py's."""


class MpiWorld:
    """The processes that ``mpirun`` started; ``record=True`` keeps every event for timelines.

    After a recorded ``run``, ``traces`` holds each rank's trace. ``tuning(library)`` gives the
    table from which ``algorithm="auto"`` chooses; all ranks use rank 0's. ``timeout``: seconds
    that a rank may wait in one call before the watchdog ends the job, 0 for no limit; by default
    ``MINIDIST_TIMEOUT``, or ten minutes.
    """

    name = "mpi"

    def __init__(
        self,
        record: bool = False,
        tuning: Callable[[str], Any] | None = load_table,
        timeout: float | None = None,
    ) -> None:
        self.process = join()
        self.mpi = self.process.mpi
        self.record = record
        self.tuning = tuning
        self.timeout = self.process.watchdog.timeout if timeout is None else timeout
        self.traces: list[Trace] = []
        self.rank, self.size = self.process.rank, self.process.size

    @property
    def library(self) -> str:
        """The MPI library and its version, such as "MPICH 5.0.2" or "Open MPI 5.0.11"."""
        return library_of(self.mpi)

    def from_rank_0(self, text: str) -> str:
        """The ``text`` of rank 0, on every rank: for what is to be known before a launch."""
        return from_rank_0(self.process.comm, text)

    def check_size(self, launched: int) -> None:
        """Raise LauncherError if the MPI library does not see the ``launched`` processes."""
        if launched != self.size:
            raise LauncherError(
                f"mpirun started {launched} processes, but the MPI library of this Python "
                f"({self.library}) sees {self.size}: the mpirun belongs to another MPI. Use the "
                "one of the same installation, such as the mpirun beside this Python"
            )

    def run(self, function: Callable[[Comm], Any]) -> list[Any]:
        """``function(comm)`` on this rank; the list of what all ranks return."""
        process, watchdog = self.process, self.process.watchdog
        with abort_on_error(self.rank, self.size, process.abort):
            name = getattr(function, "__qualname__", type(function).__name__)
            process.meet(f"launch of {name}")
            with watchdog.waiting(f"set-up of the launch of {name}"):
                comm = self._set_up()
            trace = comm.trace
            with watchdog.watching(trace, self.timeout):
                if self.record:
                    trace.offset = clock_offset(comm)
                comm.barrier()
                result = function(comm)
                comm.finish()
                trace.computed(comm.time())  # since the last message
                if comm.compares:
                    comm._compare("the end of the launch")
                comm.barrier()
                comm.close()
            with watchdog.waiting("collection of the results"):
                # The one place where objects are pickled: what a rank returns may be anything.
                ended = process.comm.allgather((result, trace if self.record else None))
            if self.record:
                self.traces = [of_rank for _, of_rank in ended]
            return [returned for returned, _ in ended]

    def _set_up(self) -> MpiComm:
        """The communicator of one launch."""
        process = self.process
        crowded = process.node_size > len(os.sched_getaffinity(0))
        if self.tuning not in process.tables:
            read = partial(self.tuning, self.library) if self.tuning else None
            process.tables[self.tuning] = agreed_table(
                process.comm, read, process.node_size == self.size, crowded
            )
        share_gpus(process.node_rank)
        trace = Trace(time.perf_counter(), self.record)
        own, request = process.comm.Idup()
        poll(request)
        comm = MpiComm(self.mpi, own, trace, crowded, process.tables[self.tuning])
        comm.learned = process.learned
        return comm


def library_of(mpi: Any) -> str:
    """The MPI library and its version, such as "MPICH 5.0.2" or "Open MPI 5.0.11"."""
    text = mpi.Get_library_version().replace("\x00", "")
    if text.startswith("MPICH"):
        return f"MPICH {text.split('Version:')[1].split()[0]}"
    return " ".join(text.split(",")[0].split()[:3]).replace(" v", " ")


def agreed_table(
    comm: Any, read: Callable[[], Any] | None, one_machine: bool, crowded: bool
) -> Any:
    """The table of algorithms that rank 0 of mpi4py's ``comm`` reads, on every rank."""
    found = None
    if read and comm.Get_rank() == 0:
        found = usable(read() or {}, one_machine, crowded)
    return json.loads(from_rank_0(comm, json.dumps(found)))


def clock_offset(comm: Comm, rounds: int = 30) -> float:
    """Seconds to add to this rank's clock to have rank 0's (Cristian's algorithm).

    Each rank asks rank 0 for the time, ``rounds`` times. Of these answers it takes the quickest,
    and assumes that rank 0 read its clock in the middle between question and answer.
    """
    clock, quickest, offset = np.zeros(1), float("inf"), 0.0
    for rank in range(1, comm.size):
        for _ in range(rounds if comm.rank in (0, rank) else 0):
            if comm.rank == 0:  # not through send and recv: these are no messages of the user's
                comm._recv(clock, rank, 0)
                clock[0] = comm.time()
                comm._send(clock, rank, 0)
            else:
                start = comm.time()
                comm._sendrecv(np.zeros(1), 0, clock, 0, 0)
                end = comm.time()
                if end - start < quickest:
                    quickest, offset = end - start, clock[0] - (start + end) / 2
    return offset
