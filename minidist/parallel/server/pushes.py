"""Pushes: how a worker sends its gradient to the servers, compressed or not.

    worker   gradient ─▶ cut by key ranges ─▶ encode each ─▶ ···· ─▶ server 0: decode, add
                                                 ▲                   server 1: decode, add
                                                 ╰─ error: kept for the next push to that server

A worker has one compressor for each server, so error feedback works range by range
(gradient_compression/compression.py). If a range begins or ends inside a matrix, its complete rows
are a matrix for PowerSGD; the incomplete rows are sent uncompressed. ``Sign`` has no majority vote
here: it is EF-signSGD. Pulls are not compressed.

A push to a server is one message. Uncompressed it has ke bytes for k keys. Compressed it has the
arrays of the compressor's ``wire``, one after the other; the loss, if this server has it, comes
first, uncompressed, in 8 bytes. The virtual clock charges only the matrix products of decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import DTypeLike

from minidist.comm.comm import Comm
from minidist.engine.array import Array, module_of
from minidist.nn.module import Module, Shape
from minidist.parallel.gradient_compression.compressor import Compressor, make_compressor

PUSH = 1  # tag


class Pushes:
    """One rank's end of all pushes: workers ``pack``, servers ``receive`` and ``add``.

    ``ranges`` are the servers' slices of the flat gradient; ``keys`` are the same without the loss,
    which may follow the last key. ``compressor`` makes a compressor; None: no compression.
    """

    def __init__(
        self,
        model: Module,
        ranges: Sequence[slice],
        keys: Sequence[slice],
        compressor: Callable[[], Compressor] | None,
        dtype: np.dtype,
        seed: int,
        rank: int,
    ) -> None:
        self.ranges, self.keys, self.dtype = ranges, keys, dtype
        self.codecs: list[Compressor] = []  # by server; for decoding and for the formulas
        self.senders: dict[int, Compressor] = {}  # by server, on a worker; they keep residuals
        self.arriving: Array | None = None  # on a server: the bytes of a compressed push
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
        """Prepare to send gradients such as ``grad`` to these servers. Call once, on a worker."""
        if self.compressed:
            for server in servers:
                sender = self.senders[server] = self.codecs[server]
                sender.start(grad[self.keys[server]], sender.shapes, sender.seed, sender.rank)

    def pack(self, server: int, grad: Array, step: int) -> Array:
        """The message to ``server``: its range of ``grad``, with the loss if it has it."""
        if not self.compressed:
            return grad[self.ranges[server]]
        keys, behind = self.keys[server], slice(self.keys[server].stop, self.ranges[server].stop)
        arrays = [grad[behind].astype(np.float64), *self.senders[server].encode(grad[keys], step)]
        xp = module_of(grad)
        return xp.concatenate([xp.asarray(array).view(np.uint8) for array in arrays])

    # The server

    def start_receiving(self, server: int, like: Array) -> None:
        """Allocate the buffer that receives compressed pushes. Call once, on that server."""
        self.server = server
        self.owned = slice(0, self.keys[server].stop - self.keys[server].start)
        if self.compressed:
            self.arriving = module_of(like).empty(self.nbytes(server), np.uint8)

    def receive(self, comm: Comm, worker: int, into: Array, tag: int = PUSH) -> None:
        """Receive a push of ``worker``: into ``into``, or, if compressed, into a buffer."""
        comm.recv(into if self.arriving is None else self.arriving, worker, tag)

    def add(self, comm: Comm, total: Array, arrived: Array, first: bool, step: int) -> None:
        """Add the push that was received last to ``total``; if ``first``, replace ``total`` by it.

        ``arrived``: the ``into`` of ``receive``; for the first push it must be ``total``.
        """
        if self.arriving is not None:
            if first:
                total.fill(0)
            start, arrays = 0, list[Array]()
            for length, dtype in self.layout(self.server):
                stop = start + length * np.dtype(dtype).itemsize
                arrays.append(self.arriving[start:stop].view(dtype))
                start = stop
            behind, *message = arrays
            self.codecs[self.server].decode(message, total[self.owned], step)
            total[self.owned.stop :] += behind
        elif not first:
            comm.combine("sum", total, arrived)

    # The formula

    def layout(self, server: int) -> list[tuple[int, DTypeLike]]:
        """The (length, dtype) of each array of a compressed push; the largest dtype comes first."""
        behind = self.ranges[server].stop - self.keys[server].stop
        return [(behind, np.float64), *self.codecs[server].wire()]

    def nbytes(self, server: int) -> int:
        """Bytes of a push to ``server``."""
        if not self.compressed:
            part = self.ranges[server]
            return (part.stop - part.start) * self.dtype.itemsize
        return sum(length * np.dtype(dtype).itemsize for length, dtype in self.layout(server))

    def arriving_bytes(self, server: int) -> int:
        """Bytes of a server's buffer for a compressed push."""
        return self.nbytes(server) if self.compressed else 0

    def kept_bytes(self, servers: Iterable[int]) -> int:
        """Bytes that a worker keeps between pushes to these servers."""
        return sum(self.codecs[server].kept_bytes() for server in servers if self.compressed)

    def encode_flops(self, servers: Iterable[int]) -> int:
        """FLOPs of encoding a push to each of these servers."""
        return sum(self.codecs[server].encode_flops() for server in servers if self.compressed)

    def decode_flops(self, server: int) -> int:
        """FLOPs of decoding one push on ``server``."""
        return self.codecs[server].decode_flops() if self.compressed else 0

    # Memory

    def arrays(self) -> list[Array]:
        """The residuals, and the buffer for a compressed push."""
        kept = [array for sender in self.senders.values() for array in sender.arrays()]
        return kept + ([] if self.arriving is None else [self.arriving])

    def to_continue(self) -> dict[str, Array]:
        """The arrays that a worker needs to continue training later, by name."""
        return {
            f"push to {server}, {index}": array
            for server, sender in self.senders.items()
            for index, array in enumerate(sender.arrays())
        }


def shapes_in(model: Module, keys: slice) -> dict[str, Shape]:
    """Names and shapes in a key range: parameters, complete rows of one, or parts of a row.

    >>> from minidist.nn import Linear
    >>> shapes_in(Linear(4, 3), slice(2, 14))
    {'weight[2:3]': (1,), 'weight[3:12]': (3, 3), 'bias[0:2]': (2,)}
    """
    shapes: dict[str, Shape] = {}
    start = 0
    for name, parameter in model.trained().items():
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
