"""``minidist bench collectives``: every all-reduce at every size, in the manner of nccl-tests.

For each size and algorithm: the result is checked first, on different data of every rank; then the
time of one call is measured, in many short turns with all other algorithms; the least of the turns
counts, because whatever disturbs the machine can only add. A turn is as long as its slowest rank.

    algorithm bandwidth   n / time                         what a user sees
    bus bandwidth         n / time · 2(p - 1)/p            what the links carry, if the algorithm
                                                           sends no more than it must

The limit of any ring on this machine is measured in the same run: ``exchange`` is the time in which
neighbours swap n/p bytes, both ways at once, by nothing but the MPI library's send and receive. A
ring needs 2(p - 1) of them. Latency is half the time of a ping-pong of 8 bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from minidist.collectives import ALL_REDUCE, all_reduce, all_reduce_cost, auto
from minidist.collectives.calibrate import calibrate
from minidist.comm.comm import Comm
from minidist.comm.launch import launch
from minidist.comm.mpi import MpiWorld
from minidist.comm.tuning import save_table

LIBRARY = "library"
SLICE = 0.0005  # seconds that a turn should last, at least: short ones slip between disturbances
LIMIT = 6.0  # seconds for all turns of one size, after the fifth


def sizes(largest: int, factor: int = 4) -> list[int]:
    """Bytes: 8, 16, and from there by ``factor``."""
    found = [8, 16]
    while found[-1] * factor <= largest:
        found.append(found[-1] * factor)
    return found


def algorithms(selection: str) -> list[str]:
    """The names that a comma-separated selection means: "all" is everything, "auto" included."""
    known = [LIBRARY, *ALL_REDUCE, "auto"]
    names = known if selection == "all" else selection.split(",")
    for name in names:
        if name not in known:
            raise ValueError(f"unknown algorithm {name!r}: choose among {', '.join(known)}")
    return list(names)


def bench(
    names: Sequence[str],
    nbytes: Iterable[int],
    dtype: str = "float32",
    turns: int = 100,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Run under ``mpirun``: the report (the content of collectives.json), on every rank."""
    world = MpiWorld()

    def run(comm: Comm) -> dict[str, Any]:
        rows = []
        for size in nbytes:
            if progress is not None and comm.rank == 0:
                progress(size)
            rows.append(_row(comm, names, size, dtype, turns))
        machine = calibrate(comm, flops=1.0)
        return {"rows": rows, "machine": machine}

    first = launch(run, world=world)[0]
    machine = first["machine"]
    for row in first["rows"]:
        length = row["bytes"] // np.dtype(dtype).itemsize
        here = (length, np.dtype(dtype).itemsize, 0, world.size, machine)
        row["predicted_seconds"] = {
            name: all_reduce_cost(*here, algorithm=name).seconds
            for name in names
            if name in ALL_REDUCE
        }
    return {
        "library": world.library,
        "ranks": world.size,
        "dtype": dtype,
        "latency": machine.latency,
        "bandwidth": machine.bandwidth,
        "reduce_bandwidth": machine.reduce_bandwidth,
        "rows": first["rows"],
    }


def _row(comm: Comm, names: Sequence[str], nbytes: int, dtype: str, turns: int) -> dict[str, Any]:
    """One size: seconds a call, by algorithm, and of an exchange of n/p bytes."""
    length = max(1, nbytes // np.dtype(dtype).itemsize)
    calls: dict[str, Callable[[], object]] = {}
    messages: dict[str, int | None] = {}
    for name in names:
        before, unseen = comm.trace.sent.messages, comm.trace.uncounted
        _check(comm, length, dtype, name)
        seen = comm.trace.uncounted == unseen
        messages[name] = comm.trace.sent.messages - before if seen else None
        array = np.zeros(length, dtype)  # sums of nothing stay finite, however often
        calls[name] = lambda name=name, array=array: all_reduce(comm, array, algorithm=name)  # type: ignore[misc]
    calls["exchange"] = _exchange(comm, max(1, nbytes // comm.size))
    seconds = _measure(comm, calls, turns)
    exchange = seconds.pop("exchange")
    return {
        "bytes": length * np.dtype(dtype).itemsize,
        "seconds": seconds,
        "messages": messages,
        "exchange_seconds": exchange if comm.size > 1 else None,
        "auto": auto.choose(comm, np.empty(length, dtype)),
    }


def _check(comm: Comm, length: int, dtype: str, name: str) -> None:
    """The result must be right before its speed is of interest."""
    array = (np.arange(length) % 7 + comm.rank).astype(dtype)
    all_reduce(comm, array, algorithm=name)
    p = comm.size
    expected = (np.arange(length) % 7 * p + p * (p - 1) // 2).astype(dtype)
    if not np.array_equal(array, expected):
        wrong = int(np.flatnonzero(array != expected)[0])
        raise ArithmeticError(
            f"{name} on {p} ranks, {dtype}[{length}]: element {wrong} is {array[wrong]}, "
            f"expected {expected[wrong]}"
        )


def _exchange(comm: Comm, nbytes: int) -> Callable[[], object]:
    """Swap ``nbytes`` with both neighbours, past all of our own checks and counters."""
    out, into = np.zeros(nbytes, np.uint8), np.zeros(nbytes, np.uint8)
    right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    return lambda: comm._sendrecv(out, right, into, left, 0)


def _measure(comm: Comm, calls: dict[str, Callable[[], object]], turns: int) -> dict[str, float]:
    """Least seconds of each call, over all turns; all ranks agree on the numbers."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    repeats = dict.fromkeys(calls, 1)
    slowest = np.zeros(1)
    begin, elapsed = time.perf_counter(), np.zeros(1)
    for turn in range(-2, turns):  # the first two warm up, and find how often to call
        elapsed[0] = time.perf_counter() - begin
        all_reduce(comm, elapsed, "max", algorithm="recursive_doubling")
        if turn >= 5 and elapsed[0] > LIMIT:
            break
        for name, call in calls.items():
            comm.barrier()
            start = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            slowest[0] = (time.perf_counter() - start) / repeats[name]
            all_reduce(comm, slowest, "max", algorithm="recursive_doubling")
            if turn < 0:
                repeats[name] = max(1, min(2000, int(SLICE / slowest[0])))
            else:
                found[name].append(float(slowest[0]))
    return {name: min(values) for name, values in found.items()}


def bus_bandwidth(nbytes: int, seconds: float, size: int) -> float:
    """Bytes a second on the links, as nccl-tests has it."""
    return nbytes / seconds * 2 * (size - 1) / size


def limit(row: dict[str, Any], size: int) -> float:
    """The bus bandwidth of a ring whose additions were free: what the transport allows."""
    return bus_bandwidth(row["bytes"], 2 * (size - 1) * row["exchange_seconds"], size)


def tune(report: dict[str, Any]) -> Path:
    """Keep the fastest algorithm at every size, for ``algorithm="auto"``; returns the file."""
    entries = []
    for row in report["rows"]:
        seconds = {name: value for name, value in row["seconds"].items() if name != "auto"}
        entries.append((row["bytes"], min(seconds, key=lambda name: seconds[name])))
    return save_table(report["library"], report["ranks"], entries)


def table(report: dict[str, Any]) -> Table:
    """Microseconds a call, the fastest marked, and bus bandwidths where bytes matter."""
    size = report["ranks"]
    view = Table(
        title=f"all-reduce on {size} ranks of {report['library']}, {report['dtype']}: "
        f"µs a call (GB/s on the bus)",
        caption=f"point to point: {report['latency'] * 1e6:.2f} µs, "
        f"{report['bandwidth'] / 1e9:.2f} GB/s; limit: a ring of bare sends and receives; "
        "*: the fastest",
    )
    names = list(report["rows"][0]["seconds"])
    for heading in ("bytes", *names, "limit"):
        view.add_column(heading.replace("_", " "), justify="right")
    for row in report["rows"]:
        rivals = {name: value for name, value in row["seconds"].items() if name != "auto"}
        best = min((rivals or row["seconds"]).values())
        cells = []
        for name in names:
            seconds = row["seconds"][name]
            mark = "*" if seconds == best else ""
            bus = bus_bandwidth(row["bytes"], seconds, size) / 1e9
            rate = f" ({bus:.2f})" if row["bytes"] >= 1 << 16 else ""
            cells.append(f"{mark}{seconds * 1e6:,.1f}{rate}")
        bare = f"{limit(row, size) / 1e9:.2f}" if size > 1 else "-"
        view.add_row(f"{row['bytes']:,}", *cells, bare)
    return view


def draw(report: dict[str, Any], path: Path) -> None:
    """Time and bus bandwidth against size, and the sizes at which another becomes the fastest."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size, rows = report["ranks"], report["rows"]
    figure = Figure(figsize=(13, 5.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    nbytes = [row["bytes"] for row in rows]
    names = [name for name in rows[0]["seconds"] if name != "auto"]
    for index, name in enumerate(names):
        style = {"color": "black", "linewidth": 2.2} if name == LIBRARY else {}
        style |= {"label": name.replace("_", " "), "marker": "o", "markersize": 3}
        if name != LIBRARY:
            style |= {"color": f"C{index - 1}", "linewidth": 1.4}
        seconds = [row["seconds"][name] for row in rows]
        left.loglog(nbytes, [value * 1e6 for value in seconds], **style)
        bus = [
            bus_bandwidth(n, value, size) / 1e9 for n, value in zip(nbytes, seconds, strict=True)
        ]
        right.semilogx(nbytes, bus, base=2, **style)
    if size > 1:
        bare = [limit(row, size) / 1e9 for row in rows]
        right.semilogx(nbytes, bare, "--", base=2, color="gray", label="limit: bare exchange")
    for position, name in crossovers(report):
        left.axvline(position, color="lightgray", zorder=0)
        left.text(
            position,
            1.0,
            f" {name.replace('_', ' ')}",
            rotation=90,
            fontsize=7,
            va="top",
            transform=left.get_xaxis_transform(),
            color="dimgray",
        )
    left.set_xscale("log", base=2)
    left.set_title("time of one all-reduce; lines: from here on another is the fastest", loc="left")
    left.set_ylabel("µs")
    right.set_title("bus bandwidth", loc="left")
    right.set_ylabel("GB/s")
    for axes in (left, right):
        axes.set_xlabel("bytes")
        axes.spines[["top", "right"]].set_visible(False)
    right.legend(frameon=False, fontsize=8)
    figure.suptitle(f"{size} ranks, {report['library']}, {report['dtype']}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def crossovers(report: dict[str, Any]) -> list[tuple[float, str]]:
    """(bytes, algorithm): from which size on that one is the fastest, until the next."""
    found: list[tuple[float, str]] = []
    before = None
    for row in report["rows"]:
        seconds = {name: value for name, value in row["seconds"].items() if name != "auto"}
        best = min(seconds, key=lambda name: seconds[name])
        if not found or found[-1][1] != best:
            found.append(((before * row["bytes"]) ** 0.5 if before else row["bytes"], best))
        before = row["bytes"]
    return found
