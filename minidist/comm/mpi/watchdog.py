"""One failing rank must end the job: loudly, soon, and with a status that is not 0.

Under plain ``mpirun python script.py`` an exception on one rank leaves the others waiting for its
messages for ever. So ``launch`` runs the user's function inside ``abort_on_error``.

And ranks that wait for each other would wait for ever. In the local world that is a ``Deadlock``;
real ranks cannot know that no other rank will ever send, so a ``Watchdog`` sets a limit. When it is
passed, the watchdog prints for every rank the call that it is in, with peer, tag and size, where it
was made, and for how long it has waited.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from traceback import walk_stack
from types import FrameType
from typing import Any

from minidist.comm.calls import describe_call
from minidist.comm.trace import Trace

FORWARDING = 0.25  # seconds
ANSWERING = 2.0  # seconds that the watchdogs of the other ranks have to answer
TIMEOUT = "MINIDIST_TIMEOUT"


@contextmanager
def abort_on_error(rank: int, size: int, abort: Callable[[int], None]) -> Iterator[None]:
    """Print what was raised inside, with the rank, and end every rank through ``abort(status)``.

    ``sys.exit`` counts: the other ranks would wait for a rank that exits alone. Status 0 becomes 1,
    since the job did not finish.
    """
    try:
        yield
    except BaseException as error:
        status = 1
        if isinstance(error, SystemExit) and isinstance(error.code, int) and error.code:
            status = error.code
        text = "".join(traceback.format_exception(error))
        sys.stdout.flush()
        sys.stderr.write(f"\nrank {rank} of {size} failed, so the whole job ends:\n{text}\n")
        sys.stderr.flush()
        # An abort kills the launcher's helpers too: give them time to pass the text on.
        time.sleep(FORWARDING)
        abort(status)
        raise


class Watchdog(threading.Thread):
    """Ends a job in which a rank has waited longer than ``timeout`` seconds in one call.

    It is a thread that looks at ``trace.call``, where ``Comm`` leaves the call that the rank is in,
    and at those of the rank's streams. ``comm`` is an MPI communicator for the watchdogs alone:
    they ask each other what their ranks do, and of those whose limit is passed the lowest rank
    prints all answers and calls ``abort``.
    """

    ASK, ANSWER = 1, 2  # tags
    LINE = 1000  # bytes of an answer

    def __init__(
        self, comm: Any, trace: Trace, timeout: float, abort: Callable[[int], None]
    ) -> None:
        super().__init__(name="watchdog", daemon=True)
        self.comm, self.trace, self.timeout, self.abort = comm, trace, timeout, abort
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        self.over = threading.Event()
        self.answers: dict[int, str] = {}
        self.asked_by: set[int] = set()

    def run(self) -> None:
        period = min(1.0, self.timeout / 4)
        while not self.over.wait(period):
            self._listen()
            if longest_wait(self.trace) > self.timeout:
                self._end_job()

    def stop(self) -> None:
        """The job has finished."""
        self.over.set()
        self.join()

    def _listen(self) -> None:
        """Answer what other watchdogs ask, and take what they answer."""
        for other in range(self.size):
            while self.comm.Iprobe(other, self.ASK):
                self.comm.Recv(bytearray(0), other, self.ASK)
                self.asked_by.add(other)
                line = describe(self.trace).encode()[: self.LINE]
                self.comm.Send(line, other, self.ANSWER)
            if self.comm.Iprobe(other, self.ANSWER):
                answer = bytearray(self.LINE)
                self.comm.Recv(answer, other, self.ANSWER)
                self.answers[other] = answer.rstrip(b"\0").decode(errors="replace")

    def _end_job(self) -> None:
        """Ask every rank what it does, print the answers, and abort."""
        self.answers[self.rank] = describe(self.trace)
        for other in range(self.size):
            if other != self.rank:
                self.comm.Send(bytearray(0), other, self.ASK)
        give_up = time.monotonic() + ANSWERING
        while len(self.answers) < self.size and time.monotonic() < give_up:
            self._listen()
            time.sleep(0.01)
        if min(self.asked_by, default=self.rank) < self.rank:
            time.sleep(ANSWERING)  # that rank's watchdog prints and ends the job
        lines = [
            f"  rank {rank}: {self.answers.get(rank, 'gives no answer')}"
            for rank in range(self.size)
        ]
        sys.stderr.write(
            f"\nrank {self.rank} of {self.size} has waited more than {self.timeout:g} s in one "
            "call, so the whole job ends. What the ranks do:\n" + "\n".join(lines) + "\n"
            f"(a longer limit: {TIMEOUT}=SECONDS in the environment, 0 for none)\n"
        )
        sys.stderr.flush()
        time.sleep(FORWARDING)
        self.abort(1)


def timeout_from_environment() -> float:
    """Seconds that a rank may wait in one call, 0 for ever: MINIDIST_TIMEOUT, or ten minutes."""
    text = os.environ.get(TIMEOUT, "600")
    try:
        seconds = float(text)
        if seconds >= 0:  # nan is not
            return seconds
    except ValueError:
        pass
    raise ValueError(f"{TIMEOUT}={text}: give seconds, such as 60, or 0 to wait for ever")


def longest_wait(trace: Trace) -> float:
    """Seconds for which this rank, or a stream of it, has been in one call."""
    calls = [one.call for one in (trace, *trace.streams)]
    return max((time.perf_counter() - call[1] for call in calls if call is not None), default=0.0)


def describe(trace: Trace) -> str:
    """What this rank waits in: call, peer, tag, size, collective, the user's line, time."""
    frames = sys._current_frames()
    parts = []
    for one in (trace, *trace.streams):
        call, frame = one.call, frames.get(one.thread)
        if call is not None and frame is not None:
            stream = "" if one is trace else " on the communication stream"
            seconds = time.perf_counter() - call[1]
            place = f"{stream}{collective(frame)}{where(frame)}"
            parts.append(f"{describe_call(call)}{place}, for {seconds:.1f} s")
    if not parts:
        parts = ["in no call of communication" + where(frames[trace.thread])]
    return "; ".join(parts)


def collective(frame: FrameType) -> str:
    """The function of ``minidist.collectives`` that made the call, if one did, and its line."""
    for outer, line in walk_stack(frame):
        module = outer.f_globals.get("__name__", "")
        if module.startswith("minidist.collectives."):
            return f", in {module.split('.')[-1]}.{outer.f_code.co_name} line {line}"
    return ""


def where(frame: FrameType) -> str:
    """The innermost line outside this package: the user's."""
    for outer, line in walk_stack(frame):
        module = outer.f_globals.get("__name__", "")
        if not module.startswith(("minidist.", "threading", "concurrent.")):
            return f', at {outer.f_code.co_filename}:{line} in "{outer.f_code.co_name}"'
    return ""
