"""Replicas: a copy of the model on each rank, and one queue for all of them.

    source ──▸ queue on rank 0 ──┬──▸ rank 0: engine ──╮
                                 ├──▸ rank 1: engine ──┼──▸ tokens on rank 0 ──▸ told
                                 ╰──▸ rank 2: engine ──╯

One queue is better than one for each replica: no request waits for a long one while another replica
is free. Rank 0 gives the next request to the replica with the fewest tokens left to compute, among
those with a free place.

A replica may have several ranks: those of a mesh with the same coordinate along dp
(mesh_engine.py).

All ranks work in rounds. In each round, rank 0 sends to every other rank its new requests and
cancellations; each engine computes one step; the first rank of each replica sends the tokens back.
With p ranks, k sequences at once on each replica, and payloads of w integers (of 8 bytes):

    rank 0 sends a round                       (p - 1) · 16 bytes, and 8w to ranks with a payload
    the first rank of another replica sends    24k bytes

Random draws depend only on the request, so the answers do not depend on the number of ranks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from minidist.comm.comm import Comm
from minidist.comm.comm import Request as Sending
from minidist.inference.engine import Engine, Event
from minidist.inference.mesh_engine import MeshEngine
from minidist.inference.requests import Answer, Refused, Request
from minidist.nn.layers import Sequential
from minidist.parallel.mesh.mesh import Mesh

REASONS = ("", "count", "stop")
CANCEL = -1  # in place of a request's number
NOTHING = -1


@dataclass(frozen=True)
class Arrivals:
    """The new requests of one round, and the numbers of cancelled ones."""

    requests: Sequence[Request] = ()
    cancelled: Sequence[int] = ()


# Called once a round on rank 0; None: there are no more requests.
Source = Callable[[int], Arrivals | None]


@dataclass
class _Front:
    """Rank 0's records: the queue, the replica of each request, and all answers."""

    engine: Engine  # of rank 0: checks whether a request can be answered
    replicas: int
    at_once: int
    answers: dict[int, Answer] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    queue: deque[int] = field(default_factory=deque)
    replica_of: dict[int, int] = field(default_factory=dict)  # of requests being answered
    count: int = 0

    def arrive(self, arrivals: Arrivals) -> list[list[int]]:
        """Record new and cancelled requests; returns the cancellations to send to each replica."""
        told: list[list[int]] = [[] for _ in range(self.replicas)]
        for request in arrivals.requests:
            number, self.count = self.count, self.count + 1
            try:
                self.engine.check(request)
            except Refused as reason:
                self.refused[number] = str(reason)
                continue
            self.answers[number] = Answer(request)
            self.queue.append(number)
        for number in arrivals.cancelled:
            answer = self.answers.get(number)
            if answer is None or answer.reason:
                continue  # refused, unknown or finished
            answer.reason = "cancelled"
            if number in self.replica_of:
                told[self.replica_of.pop(number)] += [CANCEL, number]
            else:
                self.queue.remove(number)
        return told

    def assign(self) -> list[list[int]]:
        """Give waiting requests to replicas with free places; returns the requests to send."""
        told: list[list[int]] = [[] for _ in range(self.replicas)]
        while self.queue:
            places = [list(self.replica_of.values()).count(one) for one in range(self.replicas)]
            free = [one for one in range(self.replicas) if places[one] < self.at_once]
            if not free:
                break
            number = self.queue.popleft()
            replica = min(free, key=self._left)
            self.replica_of[number] = replica
            told[replica] += encode(number, self.answers[number].request)
        return told

    def _left(self, replica: int) -> int:
        """Tokens that a replica still has to compute."""
        answers = (
            self.answers[number] for number, one in self.replica_of.items() if one == replica
        )
        return sum(answer.request.count - len(answer.tokens) for answer in answers)

    def take(self, events: np.ndarray) -> list[Event]:
        """Record the tokens of one replica's step: rows of (number, token, reason)."""
        found = []
        for number, token, reason in events[events[:, 0] != NOTHING].tolist():
            answer = self.answers[number]
            answer.tokens.append(token)
            answer.reason = REASONS[reason]
            if answer.reason:
                del self.replica_of[number]
            found.append(Event(number, token, answer.reason))
        return found


def encode(number: int, request: Request) -> list[int]:
    """A request as integers."""
    temperature = int(np.array(request.temperature, np.float64).view(np.int64))
    optional = [NOTHING if one is None else one for one in (request.top_k, request.stop)]
    head = [number, request.count, temperature, request.seed, *optional, len(request.prompt)]
    return head + list(request.prompt)


def decode(numbers: list[int]) -> tuple[list[tuple[int, Request]], list[int]]:
    """(requests with their numbers, cancelled numbers) from a payload of ``encode``d requests."""
    requests, cancelled, at = [], [], 0
    while at < len(numbers):
        if numbers[at] == CANCEL:
            cancelled.append(numbers[at + 1])
            at += 2
            continue
        number, count, bits, seed, top_k, stop, length = numbers[at : at + 7]
        at += 7
        temperature = float(np.array(bits, np.int64).view(np.float64))
        prompt = tuple(numbers[at : at + length])
        at += length
        limits = [None if one == NOTHING else one for one in (top_k, stop)]
        requests.append((number, Request(prompt, count, temperature, limits[0], seed, limits[1])))
    return requests, cancelled


class _Replica:
    """An engine, with a translation to rank 0's numbers of requests."""

    def __init__(self, engine: Engine, at_once: int) -> None:
        self.engine, self.at_once = engine, at_once
        self.outside: dict[int, int] = {}  # from the engine's number to rank 0's

    def step(self, told: list[int]) -> np.ndarray:
        """One step; its events as ``at_once`` rows of (number, token, reason)."""
        requests, cancelled = decode(told)
        for number, request in requests:
            self.outside[self.engine.submit(request)] = number
        for inside, number in list(self.outside.items()):
            if number in cancelled:
                self.engine.cancel(inside)
        rows = np.full((self.at_once, 3), NOTHING, np.int64)
        for row, event in zip(rows, self.engine.step(), strict=False):
            row[:] = [self.outside[event.number], event.token, REASONS.index(event.reason)]
        return rows


def serve(
    comm: Comm,
    model: Sequential,
    source: Source,
    told: Callable[[Event], None] = lambda event: None,
    at_once: int = 8,
    blocks: int | None = None,
    block: int = 16,
    mesh: Mapping[str, int] | None = None,
) -> tuple[dict[int, Answer], dict[int, str]]:
    """Answer all requests of ``source``, on all ranks. Every rank must call it.

    ``model``: initialised, equal on all ranks. ``source`` gives the requests of each round, and
    ``told`` is called with each token; both on rank 0 only. ``mesh``: lengths of the axes dp
    (replicas), pp and tp, such as ``{"dp": 2, "tp": 2}``; by default every rank is a replica.
    ``at_once``: sequences on each replica; ``blocks``: of each rank's cache. Requests are numbered
    from 0 in the order of arrival.

    Returns on rank 0 the answers, and the reasons of refused requests, by number; on other ranks
    two empty dictionaries. Raises ValueError for a mesh with another number of ranks, and for a
    model that cannot be cut: see ``share.py``.
    """
    grid = Mesh(comm, **(mesh or {"dp": comm.size}))
    engine = MeshEngine(model, grid, at_once, blocks, block)
    replica, replicas = _Replica(engine, at_once), grid.lengths["dp"]
    if comm.rank != 0:
        _follow(comm, replica, sends=comm.rank == grid.rank_of(dp=grid.place["dp"]))
        return {}, {}
    front = _Front(engine, replicas, at_once)
    step, arriving, sends = 0, True, list[Sending]()
    while True:
        arrivals = source(step) if arriving else None
        if not isinstance(arrivals, (Arrivals, type(None))):
            raise TypeError(
                f"serve: source must return Arrivals, or None at the end, not a "
                f"{type(arrivals).__name__}"
            )
        arriving = arrivals is not None
        cancels = front.arrive(arrivals or Arrivals())
        payloads = [a + b for a, b in zip(cancels, front.assign(), strict=True)]
        more = arriving or bool(front.queue or front.replica_of or any(payloads))
        for sending in sends:
            sending.wait()
        sends = []
        for rank in range(1, comm.size):
            payload = payloads[int(np.argwhere(grid.grid == rank)[0][0])]
            sends.append(comm.isend(np.array([len(payload), more], np.int64), rank))
            if payload:
                sends.append(comm.isend(np.array(payload, np.int64), rank))
        if not more:
            break
        every = [replica.step(payloads[0])]
        for one in range(1, replicas):
            every.append(np.empty((at_once, 3), np.int64))
            comm.recv(every[-1], grid.rank_of(dp=one))
        for rows in every:
            for event in front.take(rows):
                told(event)
        step += 1
    for sending in sends:
        sending.wait()
    return front.answers, front.refused


def _follow(comm: Comm, replica: _Replica, sends: bool) -> None:
    """The loop of every rank except 0; ``sends``: whether it sends the tokens to rank 0."""
    header = np.empty(2, np.int64)
    while True:
        comm.recv(header, 0)
        length, more = header.tolist()
        payload = np.empty(length, np.int64)
        if length:
            comm.recv(payload, 0)
        if not more:
            return
        rows = replica.step(payload.tolist())
        if sends:
            comm.send(rows, 0)
