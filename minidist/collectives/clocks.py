"""Clocks: what a series of rings costs when the ranks do not start together.

The closed formulas (2(p - 1)α + ...) hold when every rank starts at once and all parts are equally
long. In a training step neither is so: shards are uneven, and a bucket's all-reduce starts on each
rank when that rank's backward has come so far. But the rule of the α-β-γ model (``Machine`` and
``Ports`` in ``comm/machine.py``) is simple where every rank passes a message to the rank
``distance`` further:

    a message r → s starts at   max(clock of r, clock of s)      both must be there
                   and ends      α + nβ later
    clock of r      ←            the later end of its two messages, plus γ for what it adds

So a clock for each rank, moved by this rule round by round, gives the exact time for any starts
and any lengths; with even parts and a common start it gives the closed formula again. Messages
and bytes are counted on the way. This is how the costs of data parallelism and its family are
predicted: nothing is sent, and only these p numbers are computed.
"""

from __future__ import annotations

from collections.abc import Sequence

from minidist.collectives.partition import chunks
from minidist.comm.machine import Machine
from minidist.comm.ports import Ports


class Clocks:
    """For each rank of one stream: a clock; messages and bytes sent; seconds of computing."""

    def __init__(self, machine: Machine, size: int) -> None:
        self.machine = machine
        self.size = size
        self.ports = Ports(size)
        self.now = [0.0] * size
        self.messages = [0] * size
        self.nbytes = [0] * size
        self.busy = [0.0] * size

    def wait_for(self, times: Sequence[float]) -> None:
        """No rank goes on before its own of ``times``."""
        self.now = [max(pair) for pair in zip(self.now, times, strict=True)]

    def compute(self, seconds: Sequence[float]) -> None:
        """Every rank computes for its own of ``seconds``."""
        for rank, mine in enumerate(seconds):
            self.now[rank] += mine
            self.busy[rank] += mine

    def shift(self, nbytes: Sequence[int], reduce: bool = False, distance: int = 1) -> None:
        """Rank r sends ``nbytes[r]`` to rank r + distance, and adds what it receives if asked."""
        p = self.size
        ends = []
        for sender in range(p):
            receiver = (sender + distance) % p
            ready = max(self.now[sender], self.now[receiver])  # both must be there
            seconds = self.machine.message(nbytes[sender])
            ends.append(self.ports.carry(sender, receiver, ready, seconds))
        for rank in range(p):
            source = (rank - distance) % p
            self.messages[rank] += 1
            self.nbytes[rank] += nbytes[rank]
            self.now[rank] = max(ends[rank], ends[source])
            if reduce:
                self.now[rank] += self.machine.reduce(nbytes[source])
                self.busy[rank] += self.machine.reduce(nbytes[source])

    def all_reduce(self, length: int, itemsize: int) -> None:
        """``ring.all_reduce`` of ``length`` elements."""
        parts = _bytes(chunks(length, self.size), itemsize)
        p = self.size
        for round in range(p - 1):
            self.shift([parts[(rank - round) % p] for rank in range(p)], reduce=True)
        for round in range(p - 1):
            self.shift([parts[(rank + 1 - round) % p] for rank in range(p)])

    def reduce_scatter(self, parts: Sequence[slice], itemsize: int) -> None:
        """``ring.reduce_scatter`` of these parts."""
        lengths, p = _bytes(parts, itemsize), self.size
        for round in range(1, p):
            self.shift([lengths[(rank - round) % p] for rank in range(p)], reduce=True)

    def all_gather(self, parts: Sequence[slice], itemsize: int) -> None:
        """``ring.all_gather`` of these parts."""
        lengths, p = _bytes(parts, itemsize), self.size
        for round in range(p - 1):
            self.shift([lengths[(rank - round) % p] for rank in range(p)])


def _bytes(parts: Sequence[slice], itemsize: int) -> list[int]:
    return [(part.stop - part.start) * itemsize for part in parts]
