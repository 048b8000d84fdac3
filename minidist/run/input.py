"""What stands on the input of ``minidist run`` is read by rank 0, as under ``mpiexec``.

Not by way of the launcher: that of Open MPI 5 never passes on where the input ends, so a rank that
reads all of it waits for ever, and it may repeat parts of a long one (issue 2579 of PRRTE). And a
launcher in a process group of its own would be stopped if it read a terminal (SIGTTIN). So this
process copies its input into a named pipe, which rank 0 opens as its own input.

On several machines rank 0 may be on another one: then the launcher gets the input.
"""

from __future__ import annotations

import os
import select
import sys
import tempfile
from pathlib import Path
from threading import Event, Thread

INPUT = "MINIDIST_INPUT"  # the path of the named pipe, in the environment of the ranks


class Input:
    """While it lasts, the input of this process goes to rank 0; Ctrl-D, or its end, ends that one.

    In the background (``minidist run ... &``) a terminal is not read.
    """

    def __init__(self) -> None:
        self.over = Event()
        self.folder = tempfile.TemporaryDirectory(
            prefix="minidist-run-", ignore_cleanup_errors=True
        )
        self.path = str(Path(self.folder.name) / "input")  # of the named pipe
        self.thread = Thread(target=self._copy, daemon=True)

    def __enter__(self) -> dict[str, str]:
        """What the ranks need in their environment."""
        os.mkfifo(self.path, 0o600)
        self.thread.start()
        return {INPUT: self.path}

    def __exit__(self, *error: object) -> None:
        self.over.set()
        if self.thread.is_alive():
            self.thread.join(1.0)  # longer only if it writes what nobody reads: it may be left
        self.folder.cleanup()

    def _copy(self) -> None:
        source, pipe = own_input(), -1
        try:
            while not self.over.is_set():
                if pipe < 0:
                    pipe = self._opened()
                elif source is None:
                    return
                elif self._can_be_read(source):
                    data = os.read(source, 4096)
                    if not data:
                        return
                    while data:
                        data = data[os.write(pipe, data) :]
        except OSError:
            pass  # rank 0 has closed its input, or the terminal is gone
        finally:
            if pipe >= 0:
                os.close(pipe)

    def _opened(self) -> int:
        """The pipe, open to be written; -1 as long as rank 0 has not opened it."""
        try:
            pipe = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            self.over.wait(0.01)
            return -1
        os.set_blocking(pipe, True)
        return pipe

    def _can_be_read(self, source: int) -> bool:
        if not select.select([source], [], [], 0.1)[0]:
            return False
        if os.isatty(source) and os.tcgetpgrp(source) != os.getpgrp():
            self.over.wait(0.1)  # in the background, reading would stop this process
            return False
        return True


def own_input() -> int | None:
    """The file number of this process's input; None if it has none."""
    try:
        return None if sys.stdin is None or sys.stdin.closed else sys.stdin.fileno()
    except OSError:  # replaced by an object that is no file
        return None


def read_by_this_rank() -> None:
    """On rank 0: the named pipe becomes the input of this process, if there is one."""
    path = os.environ.pop(INPUT, None)
    if path is not None:
        pipe = os.open(path, os.O_RDONLY)
        os.dup2(pipe, 0)
        os.close(pipe)
