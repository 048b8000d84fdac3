"""Receiving a stream of messages: the next one arrives while one is worked on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from minidist.comm.comm import Request, Step


def arrivals(
    count: int, post: Callable[[int], Request], step: Callable[[int], Step]
) -> Iterator[int]:
    """Receive ``count`` messages in order; yields the number of each when it is there.

    ``post(number)`` starts the receive of one, always one ahead of what was yielded: so two
    buffers in turn are enough. ``step(number)`` names the waiting for one in the trace.
    """
    following = post(0) if count else None
    for number in range(count):
        arriving = following
        following = post(number + 1) if number + 1 < count else None
        assert arriving is not None
        with step(number):
            arriving.wait()
        yield number
