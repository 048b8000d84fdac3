"""The local world: ranks inside one process, on a virtual clock.

Nothing to install or launch, and ``print``, a debugger and a traceback work as in any function.
It is also a simulator of the machine it is given: computing moves a rank's clock by FLOPs over the
machine's speed, a message of n bytes takes α + n·β and keeps a port of either side busy for that
long. Runs are deterministic, receive-from-anyone included. When no rank can run, it raises
``Deadlock``, with what each rank waits for, and where. How: ``simulator.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from minidist.comm.comm import Comm
from minidist.comm.errors import CommError, Crash
from minidist.comm.local.comm import LocalComm
from minidist.comm.local.folded import Axis, Fold, FoldedComm
from minidist.comm.local.scheduler import Deadlock
from minidist.comm.local.simulator import Group, Simulator
from minidist.comm.machine import Machine
from minidist.comm.trace import Trace

__all__ = ["Deadlock", "LocalComm", "LocalWorld"]


class LocalWorld:
    """Runs a function on many ranks in this process.

    ``machine`` sets the speed of links and ranks; ``record=True`` keeps every event for timelines.
    After ``run``, ``seconds`` is the virtual time of the slowest rank and ``traces`` holds each
    rank's trace; ``timeline.Timeline(traces)`` draws them.

    ``fold`` names axes of ranks that do the same at the same time, each with its size, or (size,
    stride): of each line of an axis one rank runs for all (see ``folded.py``). Its result and trace
    are those of the others too. After ``run``, ``unfolded`` says which axes were run in full, and
    why.

    >>> world = LocalWorld(fold={"dp": 1000})
    >>> world.run(lambda comm: (comm.rank, comm.size), 1000)[999]
    (0, 1000)
    """

    name = "local"
    library: str | None = None

    def __init__(
        self,
        machine: Machine | None = None,
        record: bool = False,
        fold: Mapping[str, Axis] | None = None,
    ) -> None:
        self.machine = machine or Machine()
        self.record = record
        self.fold = dict(fold or {})
        self.unfolded: dict[str, str] = {}
        self.seconds = 0.0
        self.traces: list[Trace] = []

    def run(self, function: Callable[[Comm], Any], ranks: int) -> list[Any]:
        """``function(comm)`` on every rank; the list of what they return."""
        if ranks < 1:
            raise ValueError(f"a world needs at least one rank, not {ranks}")
        fold = Fold(self.fold, ranks, self.machine)
        self.unfolded = fold.unfolded
        simulator = Simulator(self.machine, ranks)
        simulator.alive, simulator.join = fold.alive, partial(_join, simulator)
        group = simulator.group_of(range(ranks))
        living = [rank for rank in range(ranks) if fold.alive(rank)]
        results: dict[int, Any] = {}
        traces = {rank: Trace(0.0, self.record) for rank in living}
        self.traces = [traces[fold.stands_for(rank)] for rank in range(ranks)]

        def body(rank: int) -> Callable[[], None]:
            comm = simulator.join(group, rank, traces[rank])

            def rank_body() -> None:
                try:
                    results[rank] = function(comm)
                except Crash as crash:
                    if fold.axes:
                        raise CommError(
                            f"rank {rank} crashed, and it stands for ranks that would not: run "
                            "without fold="
                        ) from crash
                    raise
                comm.trace.computed(comm.time())  # since the last message

            return rank_body

        for rank in living:
            simulator.start(rank, "", 0.0, body(rank))
        self.seconds = simulator.run()
        simulator.check_received()
        return [results.get(fold.stands_for(rank)) for rank in range(ranks)]


def _join(simulator: Simulator, group: Group, rank: int, trace: Trace) -> LocalComm:
    """A rank's end of a group: folded, if it is the only one alive of several."""
    kind = FoldedComm if group.living == 1 < len(group.ranks) else LocalComm
    return kind(simulator, group, rank, trace)
