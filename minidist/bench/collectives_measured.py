"""Each collective, size and algorithm on the ranks of ``mpirun``: checked, timed, predicted.

``collectives.py`` is the command around it, and says how it measures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from minidist.bench import point_to_point, tracing
from minidist.bench.kinds import KINDS, SYMMETRIC, Kind
from minidist.bench.turns import Call, least_seconds
from minidist.collectives import auto
from minidist.collectives.calibrate import calibrate
from minidist.comm.comm import Comm
from minidist.comm.errors import NoSharedMemory
from minidist.comm.launcher import launch
from minidist.comm.mpi.world import MpiWorld

GLOO = "gloo"


def bench(
    selected: dict[str, list[str]],
    nbytes: Sequence[int],
    dtype: str = "float32",
    turns: int = 100,
    gloo: dict[str, float] | None = None,
    progress: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """Run under ``mpirun``: the report (the content of collectives.json), on every rank.

    ``selected``: algorithms by collective. ``gloo``: seconds of its all-reduce by bytes.
    """
    world = MpiWorld()
    itemsize = np.dtype(dtype).itemsize

    def main(comm: Comm) -> dict[str, Any]:
        progress("point to point")
        transport = point_to_point.measure(comm, nbytes, turns)
        rows = []
        left_out: dict[str, str] = {}
        for name, wanted in selected.items():
            algorithms = possible(comm, KINDS[name], wanted, left_out)
            for size in nbytes if name != "barrier" else (0,):
                progress(f"{name}: {size:,} bytes")
                rows.append(_row(comm, KINDS[name], algorithms, size, dtype, turns))
        return {
            "rows": rows,
            "left_out": left_out,
            "point_to_point": transport,
            "tracing": tracing.measure(comm, turns),
            "machine": calibrate(comm, flops=1.0),
        }

    report = launch(main, world=world)[0]
    machine = report.pop("machine")
    for row in report["rows"]:
        kind, length = KINDS[row["collective"]], row["bytes"] // itemsize
        row["predicted_seconds"] = {
            name: max(
                kind.cost[name](length, itemsize, rank, world.size, machine).seconds
                for rank in range(world.size)
            )
            for name in row["seconds"]
            if name in kind.cost
        }
        if kind.name == "all_reduce" and gloo and str(row["bytes"]) in gloo:
            row["seconds"][GLOO] = gloo[str(row["bytes"])]
    return report | {
        "library": world.library,
        "ranks": world.size,
        "dtype": dtype,
        "latency": machine.latency,
        "bandwidth": machine.bandwidth,
        "reduce_bandwidth": machine.reduce_bandwidth,
    }


def possible(comm: Comm, kind: Kind, names: Sequence[str], left_out: dict[str, str]) -> list[str]:
    """The algorithms that these ranks can run; why not, for the others, is added to ``left_out``.

    Some need memory that all ranks can reach.
    """
    found = []
    for name in names:
        try:
            kind.check(comm, name, comm.size, "int32", kind.arrays(comm, name, comm.size, "int32"))
            found.append(name)
        except NoSharedMemory as error:  # raised by every rank
            left_out[name] = str(error)
    return found


def _row(
    comm: Comm, kind: Kind, names: Sequence[str], nbytes: int, dtype: str, turns: int
) -> dict[str, Any]:
    """One size: seconds a call, by algorithm, and of an exchange of n/p bytes."""
    itemsize = np.dtype(dtype).itemsize
    length = kind.length(nbytes, itemsize, comm.size) if nbytes else 0
    calls: dict[str, Call] = {}
    messages: dict[str, int | None] = {}
    # The same arrays for all algorithms: their place in memory matters, and is random.
    ordinary = kind.arrays(comm, "", length, dtype)
    for name in names:
        arrays = kind.arrays(comm, name, length, dtype) if name == SYMMETRIC else ordinary
        before, unseen = comm.trace.sent.messages, comm.trace.uncounted
        kind.check(comm, name, length, dtype, arrays)
        seen = comm.trace.uncounted == unseen
        messages[name] = comm.trace.sent.messages - before if seen else None
        calls[name] = Call(partial(kind.run[name], comm, *arrays), arrays)
    calls["exchange"] = point_to_point.exchange(comm, max(1, length * itemsize // comm.size))
    line = point_to_point.cache_line(comm)
    seconds = least_seconds(comm, calls, turns)
    exchange = seconds.pop("exchange")
    row = {
        "collective": kind.name,
        "bytes": length * itemsize,
        "seconds": seconds,
        "messages": messages,
        "exchange_seconds": exchange if comm.size > 1 else None,
        "cache_line_seconds": line,
    }
    if kind.name == "all_reduce":
        row["auto"] = auto.choose(comm, np.empty(length, dtype))
    return row
