"""Folded ranks: of ranks that do the same at the same time, one is alive and stands for all.

    LocalWorld(machine, fold={"dp": 16384})          ranks 0 to 16383 are alike: rank 0 is alive
    LocalWorld(machine, fold={"dp": (8, 64)})        8 copies of 64 stages: ranks 0 to 63 are alive

The rank that is alive keeps its number, and its communicators keep their size. On a communicator
with one rank alive, a collective takes the time of its formula, and counts the messages and bytes
that this rank would send; its numbers are combined with themselves, once for each rank. A
``sendrecv`` around a ring takes the time of its message. So a training step of any number of
replicas costs no more to simulate than that of one.

That holds for ranks that are alike. Where the machine makes them differ (jitter, pauses, single
links, stragglers), an axis is not folded, and ``LocalWorld.unfolded`` says why. What makes ranks
differ inside the program is refused: a message to a rank that is not alive, a collective with a
root, a crash, and ``split``, whose colors the others cannot say (``Comm.group`` lists the members
instead). Differences that do not show are ignored: all shards of a batch take the time of rank 0's,
the longest, and all ranks leave a collective of uneven parts at the time of the last one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from minidist.comm.cross_memory import CrossMemory
from minidist.comm.errors import CommError
from minidist.comm.local.comm import LocalComm
from minidist.comm.machine import Machine
from minidist.engine.array import Array, has_numbers, module_of

Axis = int | tuple[int, int]
SHORT = 1024  # ranks of a ring that is followed round by round where its links differ


class Fold:
    """Which ranks of a world are alive: ``fold`` maps an axis to its size, or (size, stride).

    Ranks that differ by a multiple of ``stride``, up to ``size`` of them, are one line of the axis.
    """

    def __init__(self, fold: Mapping[str, Axis], ranks: int, machine: Machine) -> None:
        self.axes: dict[str, tuple[int, int]] = {}
        self.unfolded: dict[str, str] = {}  # axes that are not folded, and why
        for name, axis in fold.items():
            size, stride = (axis, 1) if isinstance(axis, int) else axis
            if size < 1 or stride < 1 or ranks % (size * stride):
                raise ValueError(
                    f"fold: {ranks} ranks are no lines of {size} with stride {stride} (axis {name})"
                )
            why = _differ(machine, size, stride, ranks)
            if why is None:
                self.axes[name] = size, stride
            else:
                self.unfolded[name] = why

    def alive(self, rank: int) -> bool:
        """Whether this rank stands for others, and not another for it."""
        return all(rank // stride % size == 0 for size, stride in self.axes.values())

    def stands_for(self, rank: int) -> int:
        """The rank that is alive and does what ``rank`` does."""
        for size, stride in self.axes.values():
            rank -= rank // stride % size * stride
        return rank


def _differ(machine: Machine, size: int, stride: int, ranks: int) -> str | None:
    """Why the ranks of an axis do not do the same at the same time; None if they do."""
    for what in ("jitter", "pauses", "links"):
        if getattr(machine, what):
            return f"the machine has {what}, so ranks that do the same take different times"
    for rank, times in machine.slowdown.items():
        first = rank - rank // stride % size * stride
        line = [first + place * stride for place in range(size)]
        if rank < ranks and any(machine.slowdown.get(other, 1.0) != times for other in line):
            return f"rank {rank} computes {times} times as long, and not all others of its line do"
    return None


class FoldedComm(LocalComm):
    """The one rank that is alive of a communicator."""

    folded = True

    def run_folded(self, algorithm: Any, array: Array, *arguments: Any, **options: Any) -> Any:
        """A collective takes the time that its formula says, from a common start."""
        if "root" in options or (arguments and isinstance(arguments[0], int)):
            self._refuse(f"{algorithm!r} has a root, which is not like the others")
        if isinstance(array, (list, tuple)):
            self._refuse(f"{algorithm!r} of a list of arrays")
        flat, what = self.flat(array), algorithm.run.__name__
        op, parts = _op_and_parts(arguments, options)
        lengths = [part.stop - part.start for part in parts or ()]
        length = self.size * max(lengths) if lengths else flat.size  # the longest sets the time
        machine = self._level(algorithm.name)
        cost = algorithm.cost(length, flat.itemsize, self.rank, self.size, machine)
        nbytes, reduced = cost.nbytes, cost.reduced
        if lengths:  # a ring never sends its own chunk, or that of its right neighbour
            kept = lengths[(self.rank + (what == "all_gather")) % self.size]
            nbytes = (sum(lengths) - kept) * flat.itemsize
            reduced = (sum(lengths) - lengths[self.rank - 1]) * flat.itemsize * (cost.reduced > 0)
        parts = parts or _even(flat.size, self.size)
        seconds = cost.seconds
        if algorithm.name == "ring" and self.size <= SHORT and self._shares_nodes():
            nbytes_of = tuple((part.stop - part.start) * flat.itemsize for part in parts)
            key = ("ring", what, nbytes_of, tuple(self._group.ranks))
            seconds = self.once(key, lambda: self._ring_seconds(what, nbytes_of))
        self._pass(cost.messages, nbytes, seconds, machine.reduce(reduced))
        if has_numbers(flat):
            _as_if_all_had(what, op, flat, parts, self.rank)
        return flat[parts[self.rank]] if what == "reduce_scatter" else None

    def _pass(self, messages: int, nbytes: int, seconds: float, combining: float) -> None:
        """Count messages and let seconds pass. In the last ``combining`` of them the rank adds."""
        start = self._enter("collective")
        self.trace.sent.messages += messages
        self.trace.sent.nbytes += nbytes
        simulator, rank = self._simulator, self._group.ranks[self.rank]
        ports = simulator.network_ports if self._spans_nodes() else simulator.ports
        end = ports.carry(rank, rank, simulator.current.clock, seconds - combining)
        simulator.advance(end)
        self._left("sendrecv", start, nbytes)
        simulator.current.clock += combining

    def _spans_nodes(self) -> bool:
        machine, ranks = self._simulator.machine, self._group.ranks
        return machine.between_nodes(min(ranks), max(ranks))

    def _level(self, name: str) -> Machine:
        """The machine on whose links the collective runs."""
        machine, ranks = self._simulator.machine, self._group.ranks
        if machine.node is None or name == "hierarchical":
            return machine
        if not self._spans_nodes():
            return replace(machine, node=None, network=None)
        nodes = {rank // machine.node for rank in ranks}
        if len(nodes) < len(ranks) and name != "ring":
            self._refuse(
                f"{name} on ranks that share nodes has no formula on two levels: take "
                '"ring" or "hierarchical"'
            )
        return machine.network_level()

    def _shares_nodes(self) -> bool:
        """Whether some of the ring's links are inside a node, and others between nodes."""
        machine, ranks = self._simulator.machine, self._group.ranks
        if machine.node is None or not self._spans_nodes():
            return False
        return len({rank // machine.node for rank in ranks}) < len(ranks)

    def _ring_seconds(self, what: str, nbytes: tuple[int, ...]) -> float:
        """A ring whose links differ, round by round: it matters which link has a longer chunk."""
        machine, p, ranks = self._simulator.machine, self.size, self._group.ranks
        links = [machine.link(rank, ranks[(place + 1) % p]) for place, rank in enumerate(ranks)]
        latency = np.array([link.message(0) for link in links])
        per_byte = np.array([link.message(1) for link in links]) - latency
        chunks, places, clock = np.array(nbytes), np.arange(p), np.zeros(p)
        first = 1 if what == "all_reduce" else 0  # whose chunk a rank owns between the halves
        halves = {"reduce_scatter": (0,), "all_gather": (1,)}.get(what, (0, 1))
        for half in halves:
            for round in range(1, p):
                sent = chunks[(places - round + half + first) % p]
                end = np.maximum(clock, np.roll(clock, -1)) + latency + sent * per_byte
                clock = np.maximum(end, np.roll(end, 1))
                if half == 0:
                    clock += machine.reduce(np.roll(sent, 1))
        return float(clock.max())

    # Messages: around a ring alone

    def _sendrecv(self, send: Array, to: int, recv: Array, source: int, tag: int) -> int:
        if (to - self.rank) % self.size != (self.rank - source) % self.size:
            self._refuse(f"it sends to rank {to} and receives from rank {source}: no ring")
        simulator, rank = self._simulator, self._group.ranks[self.rank]
        machine = self._level("ring")
        ports = simulator.network_ports if self._spans_nodes() else simulator.ports
        seconds = machine.message(send.nbytes)
        simulator.advance(ports.carry(rank, rank, simulator.current.clock, seconds))
        if has_numbers(send):
            recv.reshape(-1)[...] = send.reshape(-1)  # its neighbour sends what it sends
        return source

    def _shared(self, length: int, like: Array) -> list[Array]:
        """One array, which stands for all."""
        return [module_of(like).zeros(length, like.dtype)] * self.size

    def _cross_memory(self) -> CrossMemory:
        return self._refuse("it reaches for the memory of other ranks")

    def _transfer(self, *_: Any) -> Any:
        self._refuse("a message to one rank alone")

    def _refuse(self, why: str) -> Any:
        raise CommError(
            f"rank {self._group.ranks[self.rank]} stands for {self.size} folded ranks, and cannot "
            f"run this: {why}. Run without fold="
        )


def _op_and_parts(
    arguments: Sequence[Any], options: Mapping[str, Any]
) -> tuple[str | None, Sequence[slice] | None]:
    """The ``op`` and ``parts`` that a collective was called with, if any."""
    op, parts = options.get("op"), options.get("parts")
    for value in arguments:
        if isinstance(value, str):
            op = value
        elif isinstance(value, (list, tuple)) and value and isinstance(value[0], slice):
            parts = value
    return op, parts


def _as_if_all_had(
    what: str, op: str | None, flat: Array, parts: Sequence[slice], rank: int
) -> None:
    """Numbers after a collective of ranks that all had the same; "max" and "min" change nothing."""
    if what == "all_gather":
        own = flat[parts[rank]].copy()
        for part in parts:
            flat[part] = own[: part.stop - part.start]
    elif op in (None, "sum"):
        flat *= flat.dtype.type(len(parts))
    elif op == "product":
        flat **= len(parts)


def _even(length: int, size: int) -> list[slice]:
    each, longer = divmod(length, size)
    starts = [rank * each + min(rank, longer) for rank in range(size + 1)]
    return [slice(*pair) for pair in pairwise(starts)]
