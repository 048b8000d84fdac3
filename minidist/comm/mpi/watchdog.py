"""One failing rank must end the job: loudly, soon, and with a status that is not 0.

Under plain ``mpirun python script.py`` an exception on one rank leaves the others waiting for its
messages for ever. So ``launch`` runs the user's function inside ``abort_on_error``.

And ranks that wait for each other would wait for ever: in the local world that is a ``Deadlock``;
real ranks cannot know that nobody will ever send, but a ``Watchdog`` can lose its patience. It
then says for every rank which call it waits in, where, and for how long.
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

FORWARDING = 0.25  # seconds
ANSWERING = 2.0  # seconds that the watchdogs of the other ranks have to answer
TIMEOUT = "MINIDIST_TIMEOUT"
IN_COMM = tuple(f"minidist.comm.{name}" for name in ("comm", "mpi.comm", "mpi.requests"))


@contextmanager
def abort_on_error(rank: int, size: int, abort: Callable[[int], None]) -> Iterator[None]:
    """Print what was raised inside, with the rank, and end every rank through ``abort(status)``.

    ``sys.exit`` counts: a rank that leaves alone would be waited for. Status 0 becomes 1, since
    the job did not finish.
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

    It watches from a thread and reads the paused calls' own variables, so the calls it watches
    cost nothing more. ``comm`` is an MPI communicator of its own: the watchdogs ask each other
    what their ranks do, and the lowest that barked prints it all and calls ``abort``.
    """

    ASK, ANSWER = 1, 2  # tags
    LINE = 1000  # bytes of an answer

    def __init__(self, comm: Any, timeout: float, abort: Callable[[int], None]) -> None:
        super().__init__(name="watchdog", daemon=True)
        self.comm, self.timeout, self.abort = comm, timeout, abort
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        self.over = threading.Event()
        self.answers: dict[int, str] = {}
        self.asked_by: set[int] = set()

    def run(self) -> None:
        period = min(1.0, self.timeout / 4)
        while not self.over.wait(period):
            self._listen()
            if longest_wait() > self.timeout:
                self._bark()

    def stop(self) -> None:
        """The job is through."""
        self.over.set()
        self.join()

    def _listen(self) -> None:
        """Answer what other watchdogs ask, and take what they answer."""
        for other in range(self.size):
            while self.comm.Iprobe(other, self.ASK):
                self.comm.Recv(bytearray(0), other, self.ASK)
                self.asked_by.add(other)
                self.comm.Send(describe().encode()[: self.LINE], other, self.ANSWER)
            if self.comm.Iprobe(other, self.ANSWER):
                line = bytearray(self.LINE)
                self.comm.Recv(line, other, self.ANSWER)
                self.answers[other] = line.rstrip(b"\0").decode(errors="replace")

    def _bark(self) -> None:
        self.answers[self.rank] = describe()
        for other in range(self.size):
            if other != self.rank:
                self.comm.Send(bytearray(0), other, self.ASK)
        give_up = time.monotonic() + ANSWERING
        while len(self.answers) < self.size and time.monotonic() < give_up:
            self._listen()
            time.sleep(0.01)
        if min(self.asked_by, default=self.rank) < self.rank:
            time.sleep(ANSWERING)  # that one prints and ends the job
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


def waits() -> list[tuple[str, float, FrameType]]:
    """Every thread's call of communication that has not returned: (thread, since, its frame)."""
    found = []
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        # The outermost frame in comm/ is the call of the collective or of the user.
        calls = [f for f, _ in walk_stack(frame) if _in_comm(f) and "start" in f.f_locals]
        if calls:
            found.append((names.get(ident, ""), calls[-1].f_locals["start"], calls[-1]))
    return found


def _in_comm(frame: FrameType) -> bool:
    return frame.f_globals.get("__name__", "") in IN_COMM


def longest_wait() -> float:
    """Seconds for which a thread of this rank has been in one call."""
    return max((time.perf_counter() - since for _, since, _ in waits()), default=0.0)


def describe() -> str:
    """What this rank waits in: call, peer, tag, size, the step of the collective, place, time."""
    parts = []
    for thread, since, frame in waits():
        stream = " on the communication stream" if thread.startswith("stream") else ""
        seconds = time.perf_counter() - since
        parts.append(f"{_call(frame)}{stream}{_step(frame)}{where(frame)}, for {seconds:.1f} s")
    if not parts:
        main = threading.main_thread().ident
        parts = ["in no call of communication" + where(sys._current_frames()[main])]  # type: ignore[index]
    return "; ".join(parts)


def _call(frame: FrameType) -> str:
    """The paused call with its arguments, as the local world's ``Deadlock`` writes them."""
    values = dict(frame.f_locals)
    owner = values.get("self")
    values |= {name.lstrip("_"): value for name, value in getattr(owner, "__dict__", {}).items()}
    said = []
    for name in ("send", "recv", "array", "to", "source", "tag", "name"):
        value: Any = values.get(name)
        if hasattr(value, "dtype"):
            value = f"{value.dtype}[{value.size}]"
        if value is not None and not callable(value):
            said.append(f"{name}={value}")
    return f"{frame.f_code.co_name}({', '.join(said)})"


def _step(frame: FrameType) -> str:
    """The collective and its round, if the call was made by one of ours."""
    for outer, _ in walk_stack(frame):
        module = outer.f_globals.get("__name__", "")
        if module.startswith("minidist.collectives."):
            number = outer.f_locals.get("round", outer.f_locals.get("distance"))
            counted = "" if number is None else f" {number}"
            return f", step {module.split('.')[-1]}.{outer.f_code.co_name}{counted}"
    return ""


def where(frame: FrameType) -> str:
    """The innermost line outside this package: the user's."""
    for outer, line in walk_stack(frame):
        module = outer.f_globals.get("__name__", "")
        if not module.startswith(("minidist.", "threading", "concurrent.")):
            return f', at {outer.f_code.co_filename}:{line} in "{outer.f_code.co_name}"'
    return ""
