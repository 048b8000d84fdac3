"""What a rank did, when: messages and bytes sent, time computing, and each event if asked for.

Counting is always on, because measured bytes must never be a guess. Events (start, end, peer,
bytes, step name) are kept only when ``record`` is set: they are what timelines are drawn from.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """One stretch of a rank's time, in seconds on its world's clock.

    ``kind``: "compute", "send", "recv", "sendrecv", "isend", "barrier", or the wait for what was
    started before: "wait send", "wait recv", "wait" (for a spawned function). ``nbytes`` are
    sent, or received by "recv". ``peer`` is the other rank, -1 for none; ``source`` is whom a
    "sendrecv" received from. ``stream``: on the rank's communication stream, where adding up is
    of kind "reduce".
    """

    kind: str
    name: str
    start: float
    end: float
    nbytes: int = 0
    peer: int = -1
    source: int = -1
    stream: bool = False


@dataclass(slots=True)
class Sent:
    """Messages and bytes sent."""

    messages: int = 0
    nbytes: int = 0


class Trace:
    """The record of one rank."""

    def __init__(self, start: float = 0.0, record: bool = False) -> None:
        self.record = record
        self.events: list[Event] = []
        self.sent = Sent()
        self.sent_in: dict[str, Sent] = {}  # by step name, without its number
        self.uncounted = 0  # collectives of the MPI library, whose messages nobody can see
        self.offset = 0.0  # to add to this rank's times to have rank 0's
        self.busy = 0.0  # seconds outside communication
        self.names: list[tuple[str, int | None, int | None]] = []  # the steps we are in
        self._mark = start  # when the last communication, or named step, ended

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
        if now > self._mark:
            self.busy += now - self._mark
            if self.record:
                self.events.append(Event("compute", self.name, self._mark, now))
            self._mark = now

    def communicated(
        self, kind: str, start: float, end: float, nbytes: int, peer: int, source: int = -1
    ) -> None:
        """A call of communication lasted from ``start`` to ``end``."""
        self._mark = end
        if self.record:
            self.events.append(Event(kind, self.name, start, end, nbytes, peer, source))

    def count(self, nbytes: int) -> None:
        """One message of ``nbytes`` leaves this rank."""
        self.sent.messages += 1
        self.sent.nbytes += nbytes
        name = self.names[-1][0] if self.names else ""
        step = self.sent_in.get(name)
        if step is None:
            step = self.sent_in[name] = Sent()
        step.messages += 1
        step.nbytes += nbytes

    def resume(self, now: float) -> None:
        """What lay between the last mark and ``now`` was nothing: a stream had no work."""
        self._mark = now

    def totals(self) -> dict[str, object]:
        """Messages, bytes and computing seconds so far, and the first two by step name."""
        return {
            "messages": self.sent.messages,
            "bytes": self.sent.nbytes,
            "busy_seconds": self.busy,
            "by_step": {
                name: {"messages": sent.messages, "bytes": sent.nbytes}
                for name, sent in self.sent_in.items()
            },
        }


class StreamTrace(Trace):
    """The record of a rank's communication stream, which writes into the rank's own.

    Messages are counted together. Events stand side by side: what the stream adds up meanwhile is
    of kind "reduce", and is no part of the rank's ``busy``.
    """

    def __init__(self, rank: Trace, start: float) -> None:
        super().__init__(start, rank.record)
        self.rank = rank
        self.sent, self.sent_in, self.events = rank.sent, rank.sent_in, rank.events

    def computed(self, now: float) -> None:
        if now > self._mark and self.rank.record:
            self.events.append(Event("reduce", self.name, self._mark, now, stream=True))
        self._mark = max(self._mark, now)

    def communicated(
        self, kind: str, start: float, end: float, nbytes: int, peer: int, source: int = -1
    ) -> None:
        self._mark = end
        self.record = self.rank.record  # asked each time: it may be switched on between steps
        if self.record:
            self.events.append(Event(kind, self.name, start, end, nbytes, peer, source, True))


def span(timelines: Iterable[list[Event]]) -> tuple[float, float]:
    """The earliest start and latest end of all events; (0, 0) if there are none."""
    events = [event for timeline in timelines for event in timeline]
    if not events:
        return 0.0, 0.0
    return min(event.start for event in events), max(event.end for event in events)
