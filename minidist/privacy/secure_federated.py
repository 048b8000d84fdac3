"""Federated averaging by secure aggregation: the server sees only the sum of the clients' changes.

    all ranks     ◀─ public keys, all-gathered ─▶            32 bytes a client, and 32 of the server
    client k      trains, encodes n_k/n · (w - w_k) as integers, masks and signs them
    rank r        ── one message a client ──▶ rank 0         4(Ψ + 10) bytes each
    rank 0        the server: checks and adds; ── the sum ──▶ all ranks    4Ψ bytes, binomial tree

Keys are random in each round, and do not depend on the seed. The masks cancel, so the result does
not depend on the keys. Integer sums are exact, so it has the same bits on any number of ranks. The
only difference to ``FederatedAveraging`` is the rounding of ``FixedPoint``: at most m·r/(2L) in
each element of Δ, if no value exceeds the limit (``clipped`` counts those). Clients on rank 0 send
no message. ``secure_sum.py`` says what is protected and from whom; buffers and the loss, for
example, are averaged unprotected.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from minidist.collectives import binomial, ring
from minidist.collectives.cost import Cost
from minidist.collectives.series import Series
from minidist.engine import array as arrays
from minidist.engine.array import Array
from minidist.parallel.model_costs import parameter_count
from minidist.privacy.federated import FederatedAveraging
from minidist.privacy.fixed_point import FixedPoint
from minidist.privacy.secure_sum import (
    KEY_BYTES,
    WORDS,
    SecureClient,
    SecureServer,
    check_enough,
    ended,
)

SERVER = 0


class SecureFederatedAveraging(FederatedAveraging):
    """``FederatedAveraging``, with its arguments; and ``fixed``, the encoding of changes.

    ``drops`` simulates clients that exchange keys and then send nothing: the round ends, on every
    rank, with ``RoundEnded``. ``clipped`` counts the values of this rank's clients that exceeded
    the limit in the last round. If it is not 0, Δ is too small: use a larger ``limit``.
    """

    changeable = FederatedAveraging.changeable | {"drops"}

    def __init__(
        self,
        *args: Any,
        fixed: FixedPoint | None = None,
        drops: Collection[int] = (),
        **options: Any,
    ) -> None:
        self.fixed = fixed or FixedPoint()
        super().__init__(*args, **options)
        self.check_setting("drops", drops)
        self.drops = drops
        self.clipped = 0

    def check_setting(self, name: str, value: Any) -> None:
        super().check_setting("gone" if name == "drops" else name, value)

    def on_rank(self, drawn: Sequence[int], rank: int) -> Sequence[int]:
        """The clients of a round that ``rank`` simulates."""
        return drawn[rank :: self.comm.size]

    def keys(self, drawn: Sequence[int]) -> list[slice]:
        """The slices of the ranks' public keys in the array of all; the server's key is first."""
        counts = [len(self.on_rank(drawn, rank)) for rank in range(self.comm.size)]
        ends = KEY_BYTES * (1 + np.cumsum(counts))
        return [
            slice(int(start), int(end)) for start, end in zip([0, *ends[:-1]], ends, strict=True)
        ]

    def begin(self, drawn: Sequence[int]) -> None:
        """Exchange public keys. Raises ValueError for too few clients, or too many to sum."""
        check_enough(len(drawn))
        self.fixed.check(len(drawn))
        self.clipped = 0
        comm = self.comm
        self.secure = {client: SecureClient(client) for client in self.on_rank(drawn, comm.rank)}
        own = [client.public for client in self.secure.values()]
        if comm.rank == SERVER:
            self.server = SecureServer()
            own.insert(0, self.server.public)
        parts = self.keys(drawn)
        every = np.zeros(parts[-1].stop, np.uint8)
        every[parts[comm.rank]] = np.frombuffer(b"".join(own), np.uint8)
        with comm.step("keys"):
            ring.all_gather(comm, every, parts)
        keys = [key.tobytes() for key in every.reshape(-1, KEY_BYTES)]
        in_order = [c for rank in range(comm.size) for c in self.on_rank(drawn, rank)]
        self.server_key, self.publics = keys[0], dict(zip(in_order, keys[1:], strict=True))
        if comm.rank == SERVER:
            self.server.begin(self.steps, self.publics, self.change.size, self.fixed.modulus_bits)

    def send(self, client: int, change: Array) -> None:
        """Send a client's change to the server, masked and signed."""
        if client in self.drops:
            return
        host = arrays.to_host(change)
        self.clipped += self.fixed.beyond(host)
        values = self.fixed.encode(host)
        message = self.secure[client].message(
            values, self.steps, self.publics, self.server_key, self.fixed.modulus_bits
        )
        if self.comm.rank == SERVER:
            self.server.receive(message)
        else:
            self.comm.send(message, SERVER)

    def average_models(self, drawn: Sequence[int]) -> None:
        comm, total = self.comm, np.zeros(self.change.size, np.uint32)
        if comm.rank == SERVER:
            message = np.empty(WORDS + total.size, np.uint32)
            for rank in range(1, comm.size):
                for _ in set(self.on_rank(drawn, rank)) - set(self.drops):
                    comm.recv(message, rank)
                    self.server.receive(message)
        if missing := set(drawn) & set(self.drops):
            raise ended(self.steps, missing)
        if comm.rank == SERVER:
            total[:] = self.server.total()
        binomial.broadcast(comm, total, root=SERVER)
        sums = self.fixed.decode(total).astype(self.change.dtype)
        self.change[...] = arrays.module_of(self.change).asarray(sums)

    def plan(self, series: Series, drawn: Sequence[int]) -> None:
        """Add the messages shown above. Their time depends on when each client is ready."""
        length = parameter_count(self.whole)
        keys = [part.stop - part.start for part in self.keys(drawn)]
        p, costs = series.size, []
        for rank in range(p):
            sent = 0 if rank == SERVER else len(self.on_rank(drawn, rank))
            tree = binomial.broadcast.cost(length, 4, rank, p, series.machine)
            others = sum(keys) - keys[(rank + 1) % p]  # a ring: all parts but the next rank's
            nbytes = others + sent * 4 * (WORDS + length) + tree.nbytes
            costs.append(Cost(p - 1 + sent + tree.messages, nbytes, 0.0))
        series.add(costs)
        series.seconds = None
