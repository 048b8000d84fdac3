"""The watchdog: it ends a job whose ranks wait for each other for ever, and says what each does.

In the local world that is a ``Deadlock``; real ranks cannot know that no other rank will ever send,
so a ``Watchdog`` sets a limit. When it is passed, the watchdog says for every rank the call that it
is in, with peer, tag and size, where it was made, and for how long it has waited.

It watches from before MPI is up until after it is down: ``MPI_Init``, the set-up of a launch, all
calls in it, and the end of the program. It only ever starts messages and looks whether they have
ended, so no rank and no network can stop it; and if printing or aborting does, ``last_resort`` ends
the process.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from traceback import walk_stack
from types import FrameType
from typing import Any

from minidist.comm.messages import users_line
from minidist.comm.mpi import ending
from minidist.comm.trace import Trace, describe_call

ANSWERING = 2.0  # seconds that the watchdogs of the other ranks have to answer
TIMEOUT = "MINIDIST_TIMEOUT"


class Watchdog(threading.Thread):
    """Ends a job in which a rank has waited longer than ``timeout`` seconds in one call.

    It is a thread that looks at ``trace.call``, where ``Comm`` leaves the call that the rank is in,
    and at those of the rank's streams; ``own`` is the record of what is outside of a launch. On
    ``comm``, an MPI communicator, watchdogs ask each other what their ranks do. Of those whose
    limit is passed the lowest rank prints all answers and calls ``abort``. One process has one.
    """

    ASK, ANSWER = 32701, 32702  # tags
    LINE = 1000  # bytes of an answer

    def __init__(
        self, rank: int, size: int, timeout: float, abort: Callable[[int], None] = ending.kill
    ) -> None:
        super().__init__(name="watchdog", daemon=True)
        self.rank, self.size, self.timeout, self.abort = rank, size, timeout, abort
        self.own = Trace()
        self.trace = self.own  # of the launch that runs
        self.comm: Any = None  # while MPI is up, if threads may call it
        self.using = threading.Lock()  # held while ``comm`` is used
        self.over = threading.Event()
        self.answers: dict[int, str] = {}
        self.asked_by: set[int] = set()
        self.sending: list[tuple[Any, Any]] = []  # requests that have not ended, and their buffers

    def run(self) -> None:
        while not self.over.wait(min(1.0, self.timeout / 4 if self.timeout else 1.0)):
            self._listen()
            if 0 < self.timeout < max(longest_wait(self.own), longest_wait(self.trace)):
                self._end_job()

    @contextmanager
    def watching(self, trace: Trace, timeout: float) -> Iterator[None]:
        """Watch a launch, whose record this is."""
        before = self.timeout
        self.trace, self.timeout = trace, timeout
        yield
        self.trace, self.timeout = self.own, before

    @contextmanager
    def waiting(self, name: str) -> Iterator[None]:
        """What is done inside waits for all ranks, and is no call of communication."""
        self.own.call = (name, time.perf_counter(), None, -1, None, -1, 0)
        try:
            yield
        finally:
            self.own.call = None

    def use(self, comm: Any) -> None:
        """Ask and answer on this communicator; on none from now on, if it is None."""
        held = self.using.acquire(timeout=ANSWERING)
        self.comm = comm
        if held:
            self.using.release()

    def _listen(self) -> None:
        """Answer what other watchdogs ask, and take what they answer."""
        with self.using:
            if self.comm is None:
                return
            self.sending = [pair for pair in self.sending if not pair[0].Test()]
            while (other := self._arrived(self.ASK, bytearray(0))) is not None:
                self.asked_by.add(other)
                self._send(self.describe().encode()[: self.LINE], other, self.ANSWER)
            answer = bytearray(self.LINE)
            while (other := self._arrived(self.ANSWER, answer)) is not None:
                self.answers[other] = answer.rstrip(b"\0").decode(errors="replace")
                answer = bytearray(self.LINE)

    def _send(self, line: bytes, to: int, tag: int) -> None:
        self.sending.append((self.comm.Isend(line, to, tag), line))

    def _arrived(self, tag: int, buffer: bytearray) -> int | None:
        """Who has sent a message of this tag, which is then in ``buffer``; None: nobody."""
        for other in range(self.size):
            if self.comm.Iprobe(other, tag):
                request = self.comm.Irecv(buffer, other, tag)
                until = time.monotonic() + ANSWERING
                while not request.Test() and time.monotonic() < until:
                    time.sleep(0.001)
                return other
        return None

    def describe(self) -> str:
        """What this rank does, in a line."""
        return describe(self.own, self.trace)

    def _end_job(self) -> None:
        """Ask every rank what it does, print the answers, and abort."""
        ending.last_resort(3 * ANSWERING + ending.GRACE)
        waited = f"has waited more than {self.timeout:g} s in one call, so the whole job ends"
        hint = f"(a longer limit: {TIMEOUT}=SECONDS in the environment, 0 for none)\n"
        self.answers[self.rank] = self.describe()
        if ending.supervised():  # who started the job asks the others
            text = f"rank {self.rank} of {self.size} {waited}:\n  {self.answers[self.rank]}\n{hint}"
            ending.end(text, 1, self.abort)
        if self.comm is not None:
            for other in range(self.size):
                if other != self.rank:
                    self._send(b"", other, self.ASK)
        give_up = time.monotonic() + ANSWERING
        while self.comm is not None and len(self.answers) < self.size:
            self._listen()
            time.sleep(0.01)
            if time.monotonic() > give_up:
                break
        if min(self.asked_by, default=self.rank) < self.rank:
            time.sleep(ANSWERING)  # that rank's watchdog prints and ends the job
        lines = [
            f"  rank {rank}: {self.answers.get(rank, 'gives no answer')}"
            for rank in range(self.size)
        ]
        ending.end(
            f"rank {self.rank} of {self.size} {waited}. What the ranks do:\n"
            + "\n".join(lines)
            + f"\n{hint}",
            1,
            self.abort,
        )


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


def describe(*traces: Trace) -> str:
    """What this rank waits in: call, peer, tag, size, collective, the user's line, time."""
    frames = sys._current_frames()
    parts = []
    for trace in dict.fromkeys(traces):
        for one in (trace, *trace.streams):
            call, frame = one.call, frames.get(one.thread)
            if call is not None and frame is not None:
                stream = "" if one is trace else " on the communication stream"
                seconds = time.perf_counter() - call[1]
                place = f"{stream}{collective(frame)}{where(frame)}"
                parts.append(f"{describe_call(call)}{place}, for {seconds:.1f} s")
    if not parts:
        parts = [
            "in no call of communication" + where(frames.get(threading.main_thread().ident or 0))
        ]
    return "; ".join(parts)


def collective(frame: FrameType) -> str:
    """The function of ``minidist.collectives`` that made the call, if one did, and its line."""
    for outer, line in walk_stack(frame):
        module = outer.f_globals.get("__name__", "")
        if module.startswith("minidist.collectives."):
            return f", in {module.split('.')[-1]}.{outer.f_code.co_name} line {line}"
    return ""


def where(frame: FrameType | None) -> str:
    place = users_line(frame) if frame is not None else ""
    return f", {place}" if place else ""
