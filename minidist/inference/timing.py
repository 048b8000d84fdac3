"""Time a stream of requests: latency of the first token, and of each token after it.

    arrival ──── waits ────▸ first token ─▸ token ─▸ token ─▸ last token
       ╰─── time to first token ───╯  ╰─ time a token ─╯

Throughput counts the tokens of all requests; the two latencies are what one user sees. More
sequences at once increase throughput and both latencies.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from minidist.comm.comm import Comm
from minidist.inference.engine import Engine, Event, parts_of_gpt
from minidist.inference.replicas import Arrivals, serve
from minidist.inference.requests import Refused, Request
from minidist.nn.layers import Sequential


@dataclass
class Timing:
    """The times of each request's tokens, in seconds after its arrival."""

    times: dict[int, list[float]] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)  # by index: the reason
    seconds: float = 0.0  # from the first arrival to the last token

    @property
    def tokens(self) -> int:
        return sum(map(len, self.times.values()))

    @property
    def tokens_a_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def first_token(self, percent: float = 50) -> float:
        """Seconds from arrival to the first token: the median, or another percentile."""
        return _percentile([times[0] for times in self.times.values()], percent)

    def first_token_mean(self) -> float:
        """Mean seconds from arrival to the first token."""
        return float(np.mean([times[0] for times in self.times.values()] or [0.0]))

    def each_token(self, percent: float = 50) -> float:
        """Seconds from one token of a request to its next: the median, or another percentile."""
        gaps = [gap for times in self.times.values() for gap in np.diff(times)]
        return _percentile(gaps, percent)


def _percentile(values: Sequence[float], percent: float) -> float:
    return float(np.percentile(values, percent)) if len(values) else 0.0


def run(
    engine: Engine,
    requests: Sequence[Request],
    arrivals: Sequence[float] | None = None,
    told: Callable[[int, Event], None] = lambda index, event: None,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Timing:
    """Submit each request at its time of arrival (seconds; by default all at 0), and answer all.

    ``told(index, event)`` is called for each token, with the index of the request. Requests that
    cannot be answered are in ``refused``; the others are answered. Raises ValueError for
    ``arrivals`` that are not in order, not one for each request, negative or not finite.
    """
    times = _times(requests, arrivals)
    timing, index_of, coming, start = Timing(), dict[int, int](), 0, clock()
    while coming < len(requests) or engine.busy:
        now = clock() - start
        while coming < len(requests) and times[coming] <= now:
            try:
                index_of[engine.submit(requests[coming])] = coming
            except Refused as reason:
                timing.refused[coming] = str(reason)
            coming += 1
        if not engine.busy:
            if coming < len(requests):
                sleep(max(0.0, times[coming] - (clock() - start)))
            continue
        for event in engine.step():
            index = index_of[event.number]
            timing.times.setdefault(index, []).append(clock() - start - times[index])
            told(index, event)
        timing.seconds = clock() - start
    return timing


def run_on(
    comm: Comm,
    model: Sequential,
    requests: Sequence[Request],
    arrivals: Sequence[float] | None = None,
    told: Callable[[int, Event], None] = lambda index, event: None,
    at_once: int = 8,
    mesh: Mapping[str, int] | None = None,
) -> Timing:
    """As ``run``, on all ranks of ``comm``, by its clock; rank 0 has the times. See ``serve``.

    On device "phantom" in the local world these are simulated times: each answer has ``count``
    tokens, and all tokens are 0.
    """
    times, timing, open_ = _times(requests, arrivals), Timing(), set[int]()
    embed, _, _ = parts_of_gpt(model)
    vocabulary, context = embed.weight.declared[0], embed.position.declared[0]
    start, coming = comm.time(), 0

    def source(step: int) -> Arrivals | None:
        nonlocal coming
        if coming == len(requests):
            return None
        if not open_:
            comm.sleep(times[coming] - (comm.time() - start))
        first, now = coming, comm.time() - start
        while coming < len(requests) and (times[coming] <= now or (first == coming and not open_)):
            try:
                requests[coming].check(vocabulary, context, context)
                open_.add(coming)
            except Refused:
                pass  # serve refuses it too, with the reason
            coming += 1
        return Arrivals(requests[first:coming])

    def noted(event: Event) -> None:
        index = event.number  # requests are numbered in order
        timing.seconds = comm.time() - start
        timing.times.setdefault(index, []).append(timing.seconds - times[index])
        if event.reason:
            open_.remove(index)
        told(index, event)

    _, timing.refused = serve(comm, model, source, noted, at_once, mesh=mesh)
    return timing


def _times(requests: Sequence[Request], arrivals: Sequence[float] | None) -> list[float]:
    """The time of arrival of each request. Raises ValueError unless each has one, in order."""
    times = [0.0] * len(requests) if arrivals is None else list(arrivals)
    if len(times) != len(requests) or sorted(times) != times:
        raise ValueError("run: arrivals must have one time for each request, in order")
    if wrong := [time for time in times if not 0 <= time < math.inf]:
        raise ValueError(f"run: arrivals are seconds from the start, at least 0, not {wrong[0]}")
    return times
