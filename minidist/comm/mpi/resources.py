"""What the communicators of one launch use: checked and freed at its end.

MPI libraries have few communicators (MPICH 2,048 in a process), and shared memory is scarce. Each
communicator is freed when it is no longer referenced, or when its launch ends; and each window of
shared memory when no array of it is in use.

A message that is never received would be lost silently. So each communicator counts its messages
sent and received: over all ranks of a launch the two sums must be equal.
"""

from __future__ import annotations

import time
import weakref
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minidist.comm.errors import CommError

MpiComm = Any  # minidist.comm.mpi.comm, which imports this file

ARRIVING = 0.5  # seconds that a message may still take when its sender has ended
_in_use: list[Any] = []  # windows of which the user still has arrays: freed with the process


@dataclass
class Counts:
    """Messages of one communicator on this rank; requests not waited for, by id."""

    sent: int = 0
    received: int = 0
    open: dict[int, Any] = field(default_factory=dict)


class Resources:
    """Of one launch, whose first communicator is ``root``, mpi4py's."""

    def __init__(self, mpi: Any, root: Any) -> None:
        self.mpi, self.root = mpi, root
        self.counts: list[Counts] = []
        self.comms: dict[int, weakref.ref[MpiComm]] = {}  # those that are referenced
        self.handles: dict[int, Any] = {}  # mpi4py's communicators that are not freed
        self.dropped: list[int] = []  # those no longer referenced
        self.windows: list[tuple[Any, MpiComm, list[weakref.ref[np.ndarray]]]] = []

    def add(self, comm: MpiComm) -> Counts:
        """A communicator of this launch; returns its counts."""
        self.counts.append(Counts())
        self.comms[id(comm)] = weakref.ref(comm)
        handle = comm._comm
        if id(handle) not in self.handles:
            self.handles[id(handle)] = handle
            weakref.finalize(comm, self.dropped.append, id(handle)).atexit = False
        return self.counts[-1]

    def free_dropped(self) -> None:
        """Free the communicators that are no longer referenced: the library can make others."""
        while self.dropped:
            handle = self.handles.pop(self.dropped.pop(), None)
            if handle is not None and handle != self.root:
                handle.Free()

    def close(self) -> None:
        """Check that all messages were received, and free everything. All ranks call it."""
        self._check()
        for counts in self.counts:
            for request in list(counts.open.values()):  # sends: all were received
                request.finish()
        for found in self.comms.values():
            if (comm := found()) is not None:
                comm._remembered.clear()
                comm._scratch.clear()
        for window, comm, arrays in self.windows:
            used = np.array([any(array() is not None for array in arrays)], np.int32)
            comm._comm.Allreduce(self.mpi.IN_PLACE, used, self.mpi.MAX)
            if used[0]:
                _in_use.append(window)
            else:
                window.Free()
        self.windows.clear()
        for handle in reversed(self.handles.values()):
            handle.Free()
        self.handles.clear()

    def _check(self) -> None:
        waiting = [
            request
            for counts in self.counts
            for request in counts.open.values()
            if hasattr(request, "cancel")
        ]
        sent = sum(counts.sent for counts in self.counts)
        received = sum(counts.received for counts in self.counts)
        lost = np.array([sent - received, len(waiting)])
        self._sum(lost)
        if not lost.any():
            return
        found = [f"nobody waited for {request}" for request in waiting] + self._unreceived()
        for request in waiting:
            request.cancel()
        if not found:
            time.sleep(4 * ARRIVING)  # another rank can name the message, and ends the job
        rank = self.root.Get_rank()
        raise CommError(
            f"at the end of the launch messages were not received. On rank {rank}: "
            + ("; ".join(found) or "none of them")
        )

    def _sum(self, array: np.ndarray) -> None:
        request = self.root.Iallreduce(self.mpi.IN_PLACE, array)
        while not request.Test():
            time.sleep(1e-4)

    def _unreceived(self) -> list[str]:
        """The messages that have arrived here and that nobody has received."""
        found, status, until = [], self.mpi.Status(), time.monotonic() + ARRIVING
        handles = list(self.handles.values())
        while time.monotonic() < until:
            for handle in handles:
                while handle.Iprobe(self.mpi.ANY_SOURCE, self.mpi.ANY_TAG, status):
                    nbytes = status.Get_count(self.mpi.BYTE)
                    source, tag = status.Get_source(), status.Get_tag()
                    handle.Recv([bytearray(nbytes), self.mpi.BYTE], source, tag)
                    found.append(
                        f"nobody received {nbytes} bytes from rank {source} of its group, tag {tag}"
                    )
            time.sleep(0.01)
        return found
