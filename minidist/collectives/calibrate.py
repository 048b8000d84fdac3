"""Measure α, β and γ of this machine, so that formulas can predict what runs on it."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import numpy as np

from minidist.collectives import central
from minidist.comm.comm import Comm
from minidist.comm.machine import Machine

LARGE = 1 << 20  # bytes: enough for bandwidth to dominate


def calibrate(comm: Comm, flops: float, repeats: int = 30) -> Machine:
    """The machine as ranks 0 and 1 see it: medians of ``repeats`` ping-pongs of 1 B and 1 MiB.

    ``flops``: operations a second, measured by the caller on its own kind of work (rank 0's is
    taken). Every rank must call it; every rank gets the same machine. One rank alone has no
    links, and keeps the defaults for those.
    """
    default = Machine()
    found = np.array([default.latency, default.bandwidth, default.reduce_bandwidth, flops])
    if comm.size > 1 and comm.rank < 2:
        small = _one_way(comm, 1, repeats)
        large = _one_way(comm, LARGE, repeats)
        found[0] = small
        found[1] = LARGE / max(large - small, 1e-9)
        into, other = np.zeros(LARGE // 4, np.float32), np.ones(LARGE // 4, np.float32)
        found[2] = LARGE / _median_seconds(lambda: np.add(into, other, out=into), repeats)
    central.broadcast(comm, found)
    latency, bandwidth, reduce_bandwidth, rate = (float(value) for value in found)
    return Machine("this machine", latency, bandwidth, reduce_bandwidth, rate)


def _one_way(comm: Comm, nbytes: int, repeats: int) -> float:
    """Seconds from rank 0 to rank 1: half of there and back."""
    buffer = np.zeros(nbytes, np.uint8)

    def there_and_back() -> None:
        if comm.rank == 0:
            comm.send(buffer, 1)
            comm.recv(buffer, 1)
        else:
            comm.recv(buffer, 0)
            comm.send(buffer, 0)

    return _median_seconds(there_and_back, repeats) / 2


def _median_seconds(function: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return median(seconds[1:])  # the first warms up
