"""What jobs that crashed have left in /dev/shm, the memory that ranks of one machine share.

MPI libraries keep files there and remove them at their end, which a killed job does not reach. A
file is a leftover if its name is one of an MPI library's, it belongs to this user, and no process
has it open or mapped.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from minidist.comm.mpi.room import SHARED

NAMES = re.compile(
    r"mpich_shm_|mpich_|MPICH|vader_segment|sm_segment|osc_sm|shmem_|ompi[._-]|psm|ucx_|pmix|prte|sem\.mp"
)
YOUNG = 1.0  # seconds: a file may have been made, and not yet be mapped
TICK = 0.01  # seconds that the clock of a file system may be behind


@dataclass(frozen=True)
class Leftover:
    path: Path
    nbytes: int


def leftovers(since: float = 0.0, folder: str = SHARED, young: float = YOUNG) -> list[Leftover]:
    """Files that nobody uses, changed after ``since`` (``time.time()``) and ``young`` s ago."""
    found = files(since, folder, young)
    used = in_use(folder) if found else set()
    return [one for one in found if str(one.path) not in used]


def files(since: float, folder: str, young: float) -> list[Leftover]:
    """The same, and those that are in use."""
    found = []
    now = time.time()
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    for name in names:
        path = Path(folder) / name
        try:
            about = path.stat()
        except OSError:
            continue
        mine = about.st_uid == os.getuid() and path.is_file() and NAMES.match(name)
        if mine and since <= about.st_mtime <= now - young:
            found.append(Leftover(path, about.st_blocks * 512))
    return found


def in_use(folder: str) -> set[str]:
    """The files in ``folder`` that some process has mapped or open."""
    used = set()
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            for line in (process / "maps").read_text().splitlines():
                if folder in line:
                    used.add(line[line.index(folder) :])
            for file in (process / "fd").iterdir():
                used.add(os.readlink(file))
        except OSError:
            continue  # it has ended, or is another user's
    return used


def remove(found: list[Leftover]) -> int:
    """Remove these files; returns how many bytes that gives back."""
    freed = 0
    for one in found:
        try:
            one.path.unlink()
            freed += one.nbytes
        except OSError:
            continue
    return freed


@contextmanager
def removed() -> Iterator[None]:
    """What a job that runs inside leaves is removed at its end, whatever that is."""
    began = time.time() - TICK
    try:
        yield
    finally:
        if files(began, SHARED, 0):
            # A launcher may end before ranks that it has killed; and a file of another job may not
            # be mapped so far.
            time.sleep(YOUNG)
            remove(leftovers(began))
