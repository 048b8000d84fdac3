"""The time of one message, by its length: the limit of all collectives on this machine.

Two numbers, α and β, do not describe a real transport. Short messages are copied at once, long ones
after a handshake, and messages that fit in a cache are faster. So latency and bandwidth are given
for each interval: between two measured sizes the time is a straight line, and its slope is
1/bandwidth of this interval.

    one way     half the time of a ping-pong between ranks 0 and 1
    exchange    every rank sends to the right and receives from the left, at the same time

Both use only the MPI library's send and receive, without minidist's checks and counters.

    cache line  from the core of rank 0 to that of rank 1 and back, without any library

shows how close the two cores are: cores that share a cache take less than half the time of others.
Use it only for comparison, because a large part of it is Python's time. The best algorithm depends
on it, and a virtual machine's cores may be moved at any time.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from rich.table import Table

from minidist.bench.turns import Call, least_seconds
from minidist.collectives import all_reduce, broadcast
from minidist.comm.comm import Comm, CommError
from minidist.comm.mpi.comm import MpiComm

Row = dict[str, Any]


def one_way(comm: Comm, nbytes: int) -> Call:
    """A ping-pong of ``nbytes``: twice the time of one way."""
    buffer = np.zeros(nbytes, np.uint8)

    def there_and_back() -> None:
        if comm.rank == 0:
            comm._send(buffer, 1, 0)
            comm._recv(buffer, 1, 0)
        elif comm.rank == 1:
            comm._recv(buffer, 0, 0)
            comm._send(buffer, 0, 0)

    return Call(there_and_back, (buffer,))


def exchange(comm: Comm, nbytes: int) -> Call:
    """Send ``nbytes`` to the right, and receive the same number from the left."""
    out, into = np.zeros(nbytes, np.uint8), np.zeros(nbytes, np.uint8)
    right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    return Call(lambda: comm._sendrecv(out, right, into, left, 0), (out,))


def cache_line(comm: Comm, rounds: int = 200, turns: int = 20) -> float | None:
    """Seconds for a cache line there and back: ranks 0 and 1 write to it in turn.

    None for one rank, if ranks share no memory, or if there are more ranks than cores. Raises
    CommError in the local world: a rank would wait for ever, because the other does not run.
    """
    if not isinstance(comm, MpiComm):
        raise CommError("cache_line needs ranks that run at the same time: use mpirun")
    enough = np.array([len(os.sched_getaffinity(0)) >= comm.size])
    # So that all ranks take the same branch:
    all_reduce(comm, enough, "min", algorithm="recursive_doubling")
    if comm.size < 2 or not enough[0]:
        return None
    try:
        memory = comm.remember("cache line", lambda: comm.shared(8, np.empty(0, np.int64)))
    except CommError:
        return None
    number, found = memoryview(memory[0]), []
    for _ in range(turns):
        comm.barrier()  # all have seen the last number
        number[0] = 0
        comm.barrier()
        start = time.perf_counter()
        for mine in range(comm.rank, 2 * rounds, 2) if comm.rank < 2 else ():
            while number[0] != mine:
                pass
            number[0] = mine + 1
        found.append((time.perf_counter() - start) / rounds)
    least = np.array([min(found)])
    broadcast(comm, least)
    return float(least[0])


def measure(comm: Comm, sizes: Sequence[int], turns: int) -> list[Row]:
    """A row for each size: seconds of one way and of an exchange."""
    rows = []
    for nbytes in sizes if comm.size > 1 else ():
        calls = {"one way": one_way(comm, nbytes), "exchange": exchange(comm, nbytes)}
        seconds = least_seconds(comm, calls, turns)
        rows.append(
            {
                "bytes": nbytes,
                "seconds": seconds["one way"] / 2,
                "exchange_seconds": seconds["exchange"],
            }
        )
    return pieces(rows)


def pieces(rows: Sequence[Row]) -> list[Row]:
    """Add ``piece_bandwidth`` to the rows: bytes a second from the size before up to this one.

    None if the time hardly grew: the cost of the bytes is then less than the noise.
    """
    found = [dict(rows[0], piece_bandwidth=None)] if rows else []
    for before, row in pairwise(rows):
        grown = row["seconds"] - before["seconds"]
        told = grown > 0.05 * before["seconds"]
        rate = (row["bytes"] - before["bytes"]) / grown if told else None
        found.append(dict(row, piece_bandwidth=rate))
    return found


def seconds_for(rows: Sequence[Row], nbytes: float, field: str = "seconds") -> float:
    """Seconds of a message of ``nbytes``, interpolated between the measured sizes."""
    sizes = [row["bytes"] for row in rows]
    if len(rows) == 1:
        return rows[0][field]
    upper = min(max(bisect_left(sizes, nbytes), 1), len(rows) - 1)
    low, high = rows[upper - 1], rows[upper]
    if nbytes <= low["bytes"]:
        return low[field]  # shorter than all measured sizes: the latency
    slope = (high[field] - low[field]) / (high["bytes"] - low["bytes"])
    return low[field] + slope * (nbytes - low["bytes"])


def table(rows: Sequence[Row]) -> Table:
    """The table of latency and bandwidth for each interval."""
    view = Table(
        title="point to point",
        caption="GB/s of this piece: from the size before up to this one",
    )
    for heading in ("bytes", "one way, µs", "GB/s", "GB/s of this piece", "exchange, µs"):
        view.add_column(heading, justify="right")
    for row in rows:
        rate = row["piece_bandwidth"]
        view.add_row(
            f"{row['bytes']:,}",
            f"{row['seconds'] * 1e6:,.2f}",
            f"{row['bytes'] / row['seconds'] / 1e9:.3f}",
            f"{rate / 1e9:.2f}" if rate else "-",
            f"{row['exchange_seconds'] * 1e6:,.2f}",
        )
    return view
