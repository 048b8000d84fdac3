"""Receiving messages in order: each is received while the one before it is processed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from minidist.comm.comm import Request, Step


def arrivals(
    count: int, post: Callable[[int], Request], step: Callable[[int], Step]
) -> Iterator[int]:
    """Receive ``count`` messages in order; yields the number of each when it has arrived.

    ``post(number)`` starts a receive, before the message in front of it is yielded: two buffers, in
    turn, are enough. ``step(number)`` names the wait in the trace.
    """
    following = post(0) if count else None
    for number in range(count):
        arriving = following
        following = post(number + 1) if number + 1 < count else None
        assert arriving is not None
        with step(number):
            arriving.wait()
        yield number
