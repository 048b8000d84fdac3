"""What a rank did, when: messages and bytes sent, time computing, and each event if asked for.

Messages, bytes and busy seconds are always counted. Events (start, end, peer, bytes, step name)
are kept only if ``record`` is set; timelines are drawn from them. If it is not set, steps have no
names, and tracing costs one question for each call: whether it is on.

While a rank is in a call of communication, its trace has a ``Call``, which is a plain tuple because
one is made for every message. The watchdog of the MPI world reports it if the call does not return.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from minidist.comm.choices import Choices
from minidist.engine.array import Array, work

# (name, start in seconds, array sent, to, array received, source, tag)
Call = tuple[str, float, Array | None, int, Array | None, int, int]
SENDING = ("send", "isend", "sendrecv")  # kinds of events in which a message leaves


@dataclass(frozen=True, slots=True)
class Event:
    """One stretch of a rank's time, in seconds on its world's clock.

    ``kind``: "compute", "send", "recv", "sendrecv", "isend", "barrier", or the wait for what was
    started before: "wait send", "wait recv", "wait" (for a spawned function). ``nbytes`` are
    sent, or received by "recv". ``peer`` is the other rank, -1 for none; ``source`` is whom a
    "sendrecv" received from. ``stream``: on the rank's communication stream, where adding up is
    of kind "reduce". ``flops``: of matrix products, by a "compute".
    """

    kind: str
    name: str
    start: float
    end: float
    nbytes: int = 0
    peer: int = -1
    source: int = -1
    stream: bool = False
    flops: int = 0


@dataclass(slots=True)
class Sent:
    """Messages and bytes sent; bytes copied between host and GPU for messages, both ways."""

    messages: int = 0
    nbytes: int = 0
    staged: int = 0


class Trace:
    """The record of one rank."""

    def __init__(self, start: float = 0.0, record: bool = False) -> None:
        self.record = record
        self.events: list[Event] = []
        self.sent = Sent()
        self.uncounted = (
            0  # calls of the MPI library's collectives, whose messages cannot be counted
        )
        self.offset = 0.0  # to add to this rank's times to have rank 0's
        self.busy = 0.0  # seconds outside communication
        self.names: list[tuple[str, int | None, int | None]] = []  # the steps we are in
        self.mark = start  # when the last communication, or named step, ended
        self.flops: int | None = None  # of ``array.work`` at the mark, if that was recorded
        self.call: Call | None = None  # the call that this rank is in: the watchdog reads it
        self.thread = threading.get_ident()  # in which the calls are made
        self.choices: Choices = {}  # of "auto", by ranks of a group: see choices.py
        self.streams: list[StreamTrace] = []  # the records of this rank's communication streams

    @property
    def name(self) -> str:
        """The innermost step we are in, such as "reduce-scatter 2/3"."""
        if not self.names:
            return ""
        name, index, of = self.names[-1]
        if index is None:
            return name
        return f"{name} {index}" if of is None else f"{name} {index}/{of}"

    def computed(self, now: float) -> None:
        """Everything from the last mark until ``now`` was computation."""
        if now > self.mark:
            self.busy += now - self.mark
            if self.record:
                flops = 0 if self.flops is None else work.flops - self.flops
                self.events.append(Event("compute", self.name, self.mark, now, flops=flops))
            self.mark = now
        self.flops = work.flops if self.record else None

    def communicated(
        self, kind: str, start: float, nbytes: int, peer: int, source: int = -1
    ) -> None:
        """A call of communication lasted from ``start`` to the mark. Called only if recording."""
        self.events.append(Event(kind, self.name, start, self.mark, nbytes, peer, source))
        self.flops = work.flops  # not those of other ranks in this process meanwhile

    def resume(self, now: float) -> None:
        """Ignore the time from the last mark until ``now``: a stream had no work."""
        self.mark = now

    def totals(self) -> dict[str, object]:
        """Messages, bytes and computing seconds so far; FLOPs, and sending by step, if recorded."""
        by_step: dict[str, dict[str, int]] = {}
        for event in self.events:
            if event.kind in SENDING:
                step = by_step.setdefault(step_of(event), {"messages": 0, "bytes": 0})
                step["messages"] += 1
                step["bytes"] += event.nbytes
        return {
            "messages": self.sent.messages,
            "bytes": self.sent.nbytes,
            "staged_bytes": self.sent.staged,
            "busy_seconds": self.busy,
            "flops": sum(event.flops for event in self.events),
            "by_step": by_step,
        }


class StreamTrace(Trace):
    """The record of a rank's communication stream, which writes into the rank's own.

    Messages are counted together, and events are kept in one list. What the stream adds up while
    the rank computes is of kind "reduce", and is not in the rank's ``busy``.
    """

    def __init__(self, rank: Trace, start: float) -> None:
        super().__init__(start, rank.record)
        self.rank = rank
        rank.streams.append(self)
        self.sent, self.events, self.choices = rank.sent, rank.events, rank.choices

    def resume(self, now: float) -> None:
        self.mark, self.record = now, self.rank.record  # it may have been switched on or off

    def computed(self, now: float) -> None:
        if now > self.mark and self.record:
            self.events.append(Event("reduce", self.name, self.mark, now, stream=True))
        self.mark = max(self.mark, now)

    def communicated(
        self, kind: str, start: float, nbytes: int, peer: int, source: int = -1
    ) -> None:
        self.events.append(Event(kind, self.name, start, self.mark, nbytes, peer, source, True))


Step = AbstractContextManager[None]  # what ``Comm.step`` returns
NO_NAME: Step = nullcontext()  # when nothing is recorded


class NamedStep(Step):
    """Gives its name to the events inside."""

    __slots__ = ("_name", "_time", "_trace")

    def __init__(
        self, trace: Trace, time: Callable[[], float], name: str, index: int | None, of: int | None
    ) -> None:
        self._trace, self._time = trace, time
        self._name = (name, index, of)

    def __enter__(self) -> None:
        self._trace.computed(self._time())
        self._trace.names.append(self._name)

    def __exit__(self, *error: object) -> None:
        self._trace.computed(self._time())
        self._trace.names.pop()


def describe_message(call: str, array: Array, peer: str, rank: int, tag: int) -> str:
    """One side of a message, such as "recv(float64[3], source=ANY, tag=0)"."""
    other = "ANY" if rank < 0 else rank
    return f"{call}({array.dtype}[{array.size}], {peer}={other}, tag={tag})"


def describe_call(call: Call) -> str:
    """A call of communication with its peers, sizes and tag."""
    name, _, send, to, recv, source, tag = call
    if send is None and recv is None:
        if source >= 0:
            return f"{name}(source={source}, tag={tag})"
        return name if " " in name else f"{name}()"  # a name with a space is no function's
    sides = []
    if send is not None:
        sides.append(describe_message("send", send, "to", to, tag))
    if recv is not None:
        sides.append(describe_message("recv", recv, "source", source, tag))
    return sides[0] if name in ("send", "recv") else f"{name} of {' and '.join(sides)}"


def step_of(event: Event) -> str:
    """The step's name without numbers and peers: "reduce" for "reduce from 2" or "reduce, send"."""
    words = event.name.partition(",")[0].split(" ")
    words = [word for word in words if not word[:1].isdigit() and word not in ("to", "from")]
    return " ".join(words) or event.kind


def span(timelines: Iterable[list[Event]]) -> tuple[float, float]:
    """The earliest start and latest end of all events; (0, 0) if there are none."""
    events = [event for timeline in timelines for event in timeline]
    if not events:
        return 0.0, 0.0
    return min(event.start for event in events), max(event.end for event in events)
