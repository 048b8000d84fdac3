"""How much memory the ranks of this machine can still share."""

from __future__ import annotations

import os
import sys

from minidist.comm.errors import CommError

STARTING = 1 << 20  # bytes of it that a rank needs to start: see docs/faults.md
SHARED = "/dev/shm"  # where MPI libraries keep the memory that ranks share


def shared_memory_left() -> float:
    """Bytes that ranks can still share. More can be allocated, but ends the process when used."""
    try:
        found = os.statvfs(SHARED)
    except OSError:
        return float("inf")  # not Linux: the memory is elsewhere, and its size is not known
    return found.f_bavail * found.f_frsize


def check_room(ranks: int) -> None:
    """Raise CommError if an MPI library cannot start here: without room, it ends by a signal."""
    left, needed = shared_memory_left(), STARTING * ranks
    if left < needed and "mpi4py.MPI" not in sys.modules:
        raise CommError(
            f"{SHARED} has {left / 2**20:.1f} MB left, and {ranks} ranks need about "
            f"{needed / 2**20:.0f} MB to start: see what jobs that crashed have left there with "
            "'minidist doctor', remove it with 'minidist doctor --clean', or make it larger "
            "(docker run --shm-size=1g)"
        )
