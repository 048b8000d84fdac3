"""Pushes: how a gradient travels from a worker to the servers, whole or compressed.

    worker   gradient ─▶ cut by key ranges ─▶ encode each ─▶ ···· ─▶ server 0: decode, add
                                                 ▲                   server 1: decode, add
                                                 ╰─ error: kept for the next push to that server

A worker has one compressor for each server, so error feedback works range by range: nothing is
lost, it is only late (compression.py). Where a range begins or ends inside a matrix, its whole
rows stay a matrix, for PowerSGD; the torn rows travel as they are. Nobody votes on the way, so
``Sign`` means EF-signSGD here. Pulls are parameters, and not compressed.

Bytes of a push to a server that owns k keys: ke as it is, else what the compressor's ``wire``
says. What is no key (the loss, where it rides behind them) is one message more, and never
compressed. Decoding is not charged to the virtual clock, but for its matrix products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from minidist.array import Array, module_of
from minidist.comm.comm import Comm
from minidist.nn.module import Module, Shape
from minidist.parallel.compression import Compressor, make_compressor

PUSH = 1  # tag


class Pushes:
    """One rank's end of all pushes: workers ``pack``, servers ``receive`` and ``add``.

    ``ranges`` are the servers' parts of the flat gradient, ``keys`` the same without what rides
    behind. ``compressor`` makes a compressor; None: gradients travel as they are.
    """

    def __init__(
        self,
        model: Module,
        ranges: list[slice],
        keys: list[slice],
        compressor: Callable[[], Compressor] | None,
        dtype: np.dtype,
        seed: int,
        rank: int,
    ) -> None:
        self.ranges, self.keys, self.dtype = ranges, keys, dtype
        self.codecs: list[Compressor] = []  # by server; enough to decode, and for the formulas
        self.senders: dict[int, Compressor] = {}  # by server, on a worker; they remember errors
        self.arriving: list[Array] = []  # on a server: a push, as it came
        if compressor is not None:
            for part in keys:
                codec = make_compressor(compressor)
                codec.describe(shapes_in(model, part), dtype, seed, rank)
                self.codecs.append(codec)

    @property
    def compressed(self) -> bool:
        return bool(self.codecs)

    # The worker

    def start_sending(self, grad: Array, servers: Iterable[int]) -> None:
        """Told once: a gradient to come, and to which servers its parts will go."""
        if self.compressed:
            for server in servers:
                sender = self.senders[server] = self.codecs[server]
                sender.start(grad[self.keys[server]], sender.shapes, sender.seed, sender.rank)

    def pack(self, server: int, grad: Array, step: int) -> list[Array]:
        """The messages of a push to ``server``: its part of ``grad``, and what rides behind."""
        if not self.compressed:
            return [grad[self.ranges[server]]]
        keys, behind = self.keys[server], slice(self.keys[server].stop, self.ranges[server].stop)
        packed = self.senders[server].encode(grad[keys], step)
        return packed + ([grad[behind]] if behind.stop > behind.start else [])

    # The server

    def start_receiving(self, server: int, like: Array) -> None:
        """Told once, on that server: allocates what compressed pushes arrive in."""
        self.server = server
        self.owned = slice(0, self.keys[server].stop - self.keys[server].start)
        if self.compressed:
            xp = module_of(like)
            self.arriving = [xp.empty(n, dtype) for n, dtype in self.codecs[server].wire()]
            behind = like.size - self.owned.stop
            self.arriving += [xp.empty(behind, self.dtype)] if behind else []

    def receive(self, comm: Comm, worker: int, into: Array, tag: int = PUSH) -> None:
        """A push of ``worker``: into ``into`` as it is, or packed, to be unpacked by ``add``."""
        for buffer in self.arriving or [into]:
            comm.recv(buffer, worker, tag)

    def add(self, comm: Comm, total: Array, arrived: Array, first: bool, step: int) -> None:
        """Add to ``total``, or if ``first`` begin it with, what was received last.

        If that came as it is, it lies in ``arrived``; the first may have come into ``total``.
        """
        if self.compressed:
            if first:
                total.fill(0)
            wire = len(self.codecs[self.server].wire())
            self.codecs[self.server].decode(self.arriving[:wire], total[self.owned], step)
            for behind in self.arriving[wire:]:
                total[self.owned.stop :] += behind
        elif not first:
            comm.combine("sum", total, arrived)

    # The formula

    def sizes(self, server: int) -> list[int]:
        """Bytes of each message of a push to ``server``."""
        behind = self.ranges[server].stop - self.keys[server].stop
        own = self.keys[server].stop - self.keys[server].start
        if not self.compressed:
            return [(own + behind) * self.dtype.itemsize]
        wire = [n * np.dtype(dtype).itemsize for n, dtype in self.codecs[server].wire()]
        return wire + ([behind * self.dtype.itemsize] if behind else [])

    def arriving_bytes(self, server: int) -> int:
        """What a server holds of a compressed push, without what rides behind."""
        if not self.compressed:
            return 0
        return sum(n * np.dtype(dtype).itemsize for n, dtype in self.codecs[server].wire())

    def kept_bytes(self, servers: Iterable[int]) -> int:
        """What a worker remembers that pushes to these servers."""
        return sum(self.codecs[server].kept_bytes() for server in servers if self.compressed)

    def encode_flops(self, servers: Iterable[int]) -> int:
        """FLOPs of packing a push to each of these servers."""
        return sum(self.codecs[server].encode_flops() for server in servers if self.compressed)

    def decode_flops(self, server: int) -> int:
        """FLOPs of unpacking one push at ``server``."""
        return self.codecs[server].decode_flops() if self.compressed else 0

    # Memory

    def holds(self) -> list[Array]:
        """Errors kept for the next push, and the push that arrives."""
        kept = [array for sender in self.senders.values() for array in sender.holds()]
        wire = len(self.codecs[self.server].wire()) if self.arriving else 0
        return kept + self.arriving[:wire]

    def remembered(self) -> dict[str, Array]:
        """What a worker must keep to go on later, by name."""
        return {
            f"push to {server}, {index}": array
            for server, sender in self.senders.items()
            for index, array in enumerate(sender.holds())
        }


def shapes_in(model: Module, keys: slice) -> dict[str, Shape]:
    """What lies in a key range: parameters, or the whole rows of one, or pieces of a row.

    >>> from minidist.nn import Linear
    >>> shapes_in(Linear(4, 3), slice(2, 14))
    {'weight[2:3]': (1,), 'weight[3:12]': (3, 3), 'bias[0:2]': (2,)}
    """
    shapes: dict[str, Shape] = {}
    start = 0
    for name, parameter in model.named_parameters().items():
        low = max(keys.start - start, 0)
        high = min(keys.stop - start, parameter.size)
        start += parameter.size
        if low >= high:
            continue
        row = int(np.prod(parameter.declared[1:]))
        first, last = -(-low // row) * row, high // row * row
        if len(parameter.declared) < 2 or first >= last:
            first = last = high
        for begin, end in ((low, first), (first, last), (last, high)):
            if begin < end:
                whole = (begin, end) == (first, last)
                rows = ((end - begin) // row, *parameter.declared[1:])
                shapes[f"{name}[{begin}:{end}]"] = rows if whole else (end - begin,)
    return shapes
