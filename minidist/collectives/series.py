"""A series of collectives: what each rank sends in all of them, and their time where it adds up.

    compute, a ring of n₁ bytes, a ring of n₂ bytes    seconds = max compute + T(n₁) + T(n₂)

Messages, bytes and reductions always add up. Seconds do where all ranks begin every collective at
one time: shards are alike, and so are the chunks of a ring. Else a rank that is done early begins
the next collective early, and there is no formula: ``seconds`` is None, and the simulation
(``parallel/simulation.py``) finds the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from minidist.collectives import ring
from minidist.collectives.cost import Cost
from minidist.comm.machine import Machine


class Series:
    """By rank: messages and bytes sent, and seconds busy. ``seconds``: of all, None if unknown."""

    def __init__(self, machine: Machine, size: int) -> None:
        self.machine = machine
        self.size = size
        self.messages = [0] * size
        self.nbytes = [0] * size
        self.busy = [0.0] * size
        self.seconds: float | None = 0.0 if machine.even else None
        self.together = True  # all ranks are through at the same time

    def compute(self, seconds: Sequence[float]) -> None:
        """Every rank computes for its own of ``seconds``."""
        self.busy = [busy + own for busy, own in zip(self.busy, seconds, strict=True)]
        self._then(max(seconds), len(set(seconds)) == 1)

    def add(self, costs: Sequence[Cost], even: bool = True, counted: bool = True) -> None:
        """A collective of these costs, by rank. ``even``: all ranks are through at the same time.

        ``counted``: what it adds up keeps the rank busy, and not a stream beside it.
        """
        for rank, cost in enumerate(costs):
            self.messages[rank] += cost.messages
            self.nbytes[rank] += cost.nbytes
            self.busy[rank] += self.machine.reduce(cost.reduced) if counted else 0.0
        self._then(max(cost.seconds for cost in costs), even)

    def all_reduce(self, length: int, itemsize: int) -> None:
        """``ring.all_reduce`` of ``length`` elements."""
        self._ring(ring.all_reduce_cost, length, itemsize)

    def reduce_scatter(self, length: int, itemsize: int) -> None:
        """``ring.reduce_scatter`` of ``length`` elements."""
        self._ring(ring.reduce_scatter_cost, length, itemsize)

    def all_gather(self, length: int, itemsize: int) -> None:
        """``ring.all_gather`` to ``length`` elements."""
        self._ring(ring.all_gather_cost, length, itemsize)

    def _ring(self, cost: Callable[..., Cost], length: int, itemsize: int) -> None:
        costs = [cost(length, itemsize, rank, self.size, self.machine) for rank in range(self.size)]
        self.add(costs, even=length % self.size == 0)

    def _then(self, seconds: float, even: bool) -> None:
        """What is next takes ``seconds`` if all ranks begin it together."""
        if self.seconds is not None:
            self.seconds = self.seconds + seconds if self.together or not seconds else None
        self.together = self.together and (even or not seconds)
