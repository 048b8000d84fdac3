"""The MPI world: ranks are the processes that ``mpirun`` started.

This is the only file that imports mpi4py, and only when an MPI world is made.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from minidist.comm.comm import Comm
from minidist.comm.mpi.comm import MpiComm
from minidist.comm.mpi.watchdog import Watchdog, abort_on_error, timeout_from_environment
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
        from mpi4py import MPI

        self.mpi = MPI
        self.record = record
        self.tuning = tuning
        self.timeout = timeout_from_environment() if timeout is None else timeout
        self.traces: list[Trace] = []
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
        """Raise LauncherError if the MPI library does not see the ``launched`` processes."""
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
            tuning = None
            if self.tuning and self.rank == 0:
                tuning = usable(self.tuning(self.library) or {}, node.Get_size() == self.size)
            share_gpus(node.Get_rank())
            node.Free()
            trace = Trace(time.perf_counter(), self.record)
            # Objects are pickled here alone: before a run, one table; after it, the results.
            comm = MpiComm(self.mpi, world.Dup(), trace, crowded, world.bcast(tuning))
            if self.record:
                trace.offset = clock_offset(comm)
            watchdog = None
            threads = self.mpi.Query_thread() == self.mpi.THREAD_MULTIPLE
            if self.timeout and self.size > 1 and threads:
                watchdog = Watchdog(world.Dup(), trace, self.timeout, world.Abort)
                watchdog.start()
            comm.barrier()
            result = function(comm)
            comm.finish()
            trace.computed(comm.time())  # since the last message
            comm.barrier()
            if watchdog is not None:
                watchdog.stop()
            if self.record:
                self.traces = world.allgather(trace)
            return world.allgather(result)


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
