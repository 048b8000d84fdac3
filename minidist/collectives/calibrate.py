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
    """The machine as rank 0 sees it: medians of ``repeats`` exchanges of 1 B and of 1 MiB.

    ``flops``: operations a second, measured by the caller on its own kind of work (rank 0's is
    taken). Every rank must call it; every rank gets the same machine. One rank alone has no
    links, and keeps the defaults for those.
    """
    default = Machine()
    found = np.array([default.latency, default.bandwidth, default.reduce_bandwidth, flops])
    if comm.size > 1:
        small = _exchange(comm, 1, repeats)
        large = _exchange(comm, LARGE, repeats)
        found[0] = small
        found[1] = LARGE / max(large - small, 1e-9)
        into, other = np.zeros(LARGE // 4, np.float32), np.ones(LARGE // 4, np.float32)
        found[2] = LARGE / _median_seconds(lambda: np.add(into, other, out=into), repeats)
    central.broadcast(comm, found)
    latency, bandwidth, reduce_bandwidth, rate = (float(value) for value in found)
    return Machine("this machine", latency, bandwidth, reduce_bandwidth, rate)


def _exchange(comm: Comm, nbytes: int, repeats: int) -> float:
    """Seconds of passing ``nbytes`` to the next rank while as many come from the last one.

    This is what rings do. Ranks that share a memory copy both at the same time: a message alone
    would be faster.
    """
    out, into = np.zeros(nbytes, np.uint8), np.zeros(nbytes, np.uint8)
    right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    return _median_seconds(lambda: comm.sendrecv(out, right, into, left), repeats)


def _median_seconds(function: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return median(seconds[1:])  # the first warms up
