"""This process as a rank of an MPI job: what it has once, for all launches.

The ranks of a job meet before each launch and at the end of the program, and compare where they
are. So a rank that has skipped a launch, or has left by ``sys.exit``, is noticed at once; otherwise
the others would wait for it for ever.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np

from minidist.comm import link
from minidist.comm.environment import YIELD, launched_size, rank_in_environment
from minidist.comm.errors import CommError
from minidist.comm.messages import users_line
from minidist.comm.mpi import ending, room
from minidist.comm.mpi.watchdog import ANSWERING, Watchdog, timeout_from_environment

LINE = 400  # bytes in which a rank says where it is
_process: Process | None = None


def join() -> Process:
    """This process's part of the job; MPI starts at the first call."""
    global _process
    if _process is None:
        _process = Process(launched_size() or 1)
    return _process


def who_and_abort() -> tuple[str, Callable[[int], None]]:
    """What to call this process in a message, and how to end the job."""
    if _process is not None and _process.comm is not None:
        return f"rank {_process.rank} of {_process.size}", _process.abort
    if "mpi4py.MPI" in sys.modules:
        mpi = sys.modules["mpi4py.MPI"]
        if mpi.Is_initialized() and not mpi.Is_finalized():
            world = mpi.COMM_WORLD
            return f"rank {world.Get_rank()} of {world.Get_size()}", world.Abort
    return f"rank {rank_in_environment()}", ending.kill


def on_uncaught(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """``sys.excepthook`` under a launcher: an exception anywhere ends the whole job."""
    launched = launched_size() is not None or ending.supervised()
    if hasattr(sys, "ps1") or not launched:  # at a prompt, or no launcher after all
        sys.__excepthook__(kind, error, trace)
        return
    who, abort = who_and_abort()
    ending.fail(who, error.with_traceback(trace), abort)


def on_uncaught_in_thread(found: threading.ExceptHookArgs) -> None:
    """``threading.excepthook`` under a launcher: the same. A thread may leave by ``sys.exit``."""
    if found.exc_type is not SystemExit and found.exc_value is not None:
        on_uncaught(found.exc_type, found.exc_value, found.exc_traceback)


def initialised() -> Any:
    """mpi4py's module, with MPI running.

    ``MPI_Init`` waits for all ranks, and mpi4py holds Python's lock meanwhile, so that no watchdog
    could run. Called through ctypes it does not. If mpi4py was loaded before, MPI runs already, or
    starts as mpi4py's settings say.
    """
    import mpi4py

    if "mpi4py.MPI" in sys.modules or not mpi4py.rc.initialize:
        from mpi4py import MPI

        return MPI
    mpi4py.rc.initialize = False
    os.environ.setdefault(YIELD, "1")
    from mpi4py import MPI

    library, given = ctypes.CDLL(MPI.__file__), ctypes.c_int()
    library.MPI_Init_thread(None, None, int(MPI.THREAD_MULTIPLE), ctypes.byref(given))
    for comm in (MPI.COMM_WORLD, MPI.COMM_SELF):
        comm.Set_errhandler(MPI.ERRORS_RETURN)  # so that mpi4py raises its exceptions
    return MPI


def finalise(mpi: Any) -> None:
    """End MPI: waits for all ranks, without Python's lock, like ``initialised``."""
    ctypes.CDLL(mpi.__file__).MPI_Finalize()


class Process:
    """MPI's module, rank and size; the watchdog; a communicator for meetings and for ``launch``."""

    def __init__(self, launched: int) -> None:
        self.comm: Any = None
        self.watchdog = Watchdog(rank_in_environment(), launched, timeout_from_environment())
        if launched > 1:
            self._watch()
            room.check_room(launched)
        with self.watchdog.waiting(link.STARTING):
            MPI = initialised()
        self.mpi = MPI
        world = MPI.COMM_WORLD
        self.rank, self.size = world.Get_rank(), world.Get_size()
        self.abort = world.Abort
        self.number = 0  # of launches
        self.node_rank, self.node_size = 0, 1
        self.tables: dict[Any, Any] = {}  # of algorithms, by the function that reads them
        self.learned: dict[str, str | None] = {}  # by the launches before: collectives/learn.py
        atexit.register(self._end)
        if self.size == 1:
            self.comm = world
            return
        self.watchdog.rank, self.watchdog.size, self.watchdog.abort = (
            self.rank, self.size, self.abort
        )  # fmt: skip
        if MPI.Query_thread() == MPI.THREAD_MULTIPLE:
            self.watchdog.use(world)
        self._watch()
        with self.watchdog.waiting("set-up of MPI"):
            self.comm = world.Dup()
            node = world.Split_type(MPI.COMM_TYPE_SHARED)
            self.node_rank, self.node_size = node.Get_rank(), node.Get_size()
            node.Free()

    def _watch(self) -> None:
        if not self.watchdog.is_alive():
            self.watchdog.start()
            if (supervisor := link.current()) is not None:
                supervisor.describe = self.watchdog.describe

    def meet(self, what: str) -> None:
        """Wait for all ranks; CommError on each of them if one is somewhere else."""
        if self.size == 1:
            return
        self.number += 1
        here = f"{self.number}: {what}\0{users_line(sys._getframe())}".encode()[:LINE]
        mine, all_lines = np.zeros(LINE, np.uint8), np.zeros((self.size, LINE), np.uint8)
        mine[: len(here)] = np.frombuffer(here, np.uint8)
        with self.watchdog.waiting(what):
            poll(self.comm.Iallgather(mine, all_lines))
        texts = [bytes(line).rstrip(b"\0").decode(errors="replace") for line in all_lines]
        if len({text.partition("\0")[0] for text in texts}) > 1:
            if self.rank:
                time.sleep(ANSWERING)  # rank 0 prints, and ends the job
            where = [text.partition(": ")[2].replace("\0", ", ").rstrip(", ") for text in texts]
            lines = [f"  rank {rank}: {line}" for rank, line in enumerate(where)]
            raise CommError("the ranks are not at the same place:\n" + "\n".join(lines))

    def _end(self) -> None:
        """At the end of the program: no rank may still wait for this one. Then MPI ends."""
        if self.mpi.Is_finalized():
            return
        with ending.abort_on_error(self.rank, self.size, self.abort):
            self.meet("the end of the program")
        self.watchdog.use(None)
        self.watchdog.abort = ending.kill
        with self.watchdog.waiting("MPI_Finalize"):
            finalise(self.mpi)
        self.watchdog.over.set()


def from_rank_0(comm: Any, text: str) -> str:
    """The ``text`` that rank 0 of ``comm``, mpi4py's, passes, on every rank.

    Its length is sent first, then its bytes. What the other ranks pass is not used.
    """
    data = np.frombuffer(text.encode(), np.uint8)
    length = np.array([data.size])
    poll(comm.Ibcast(length))
    sent = data.copy() if comm.Get_rank() == 0 else np.empty(length[0], np.uint8)
    poll(comm.Ibcast(sent))
    return sent.tobytes().decode()


def poll(request: Any) -> None:
    """Wait for a request of MPI, and leave the cores to other ranks meanwhile."""
    start = time.monotonic()
    while not request.Test():
        if time.monotonic() - start < 2e-3:
            os.sched_yield()
        else:
            time.sleep(1e-3)
