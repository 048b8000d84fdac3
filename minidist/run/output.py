"""What the launcher and the ranks print, without what launchers say when a rank has ended."""

from __future__ import annotations

import re
from typing import IO

# The report says it better; that Open MPI finds no UCX for a window is no error.
NOISE = re.compile(
    rb"=+$|=   |-{20,}$|Abort\(\d+\)|YOUR APPLICATION TERMINATED|This typically refers to a problem"
    rb"|Please see the FAQ page|prterun (detected|noticed|has exited)|MPI_ABORT was invoked"
    rb"|  Proc: \[|  Errorcode: |NOTE: invoking MPI_ABORT|You may or may not see output"
    rb"|exactly when Open MPI kills|thus causing the job|   Process name: \[|   Exit code: "
    rb"|\[.*\] (HYD|HYDU|control_cb|main|ui_mpich|wait_for|stdio_cb)|Abort is in progress"
    rb"|signal \d+ \(|\[proxy:|\[mpiexec@"
    rb"|\[.*\] .*osc_ucx_component\.c:|[ \0]+$"
)
BEGINNINGS = b"=-APYTMNIyet[ \0"  # of such lines


class Output:
    """A pipe of the launcher's: what comes goes ``into`` a stream, line by line.

    A line that has not ended, such as a progress bar, goes on at once unless it may be noise.
    """

    def __init__(self, pipe: IO[bytes], into: IO[bytes], kept: list[bytes]) -> None:
        self.pipe, self.into, self.kept = pipe, into, kept
        self.partial, self.begun = b"", False  # a line's beginning; whether it was passed on
        self.blank = b""  # an empty line that was not passed on so far

    def read(self) -> bool:
        """Pass on what is there; returns whether there may be more."""
        data = self.pipe.read(1 << 16)
        if data is None:
            return True
        *whole, partial = (self.partial + data).split(b"\n")
        for line in whole:
            self.kept.append(line + b"\n")
            del self.kept[:-50]
            if self.begun or not (NOISE.match(line) or not line):
                self._write(self.blank + line + b"\n")
            # Noise has empty lines about it: one is passed on with the next line that is none.
            self.blank = b"\n" if not (line or self.begun) else b""
            self.begun = False
        self.partial = partial
        if partial and (self.begun or not data or partial[0] not in BEGINNINGS):
            self._write(self.blank + partial)
            self.partial, self.begun, self.blank = b"", True, b""
        self.into.flush()
        return bool(data)

    def _write(self, text: bytes) -> None:
        try:
            self.into.write(text)
        except (BrokenPipeError, ValueError):
            self.into = open("/dev/null", "wb")  # noqa: SIM115 (nobody reads any longer)
