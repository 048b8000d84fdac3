"""The clients and local batches of a round of federated learning: base of ``federated.py``.

A batch is divided among the clients that own its samples. Of the clients that have data and are not
gone, a fraction is drawn, keyed by (seed, round). Each of them trains on its samples for some
epochs, in a random order keyed by (seed, client, round, epoch), so not by rank.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np

from minidist.comm.comm import Comm
from minidist.data.batches import Batch
from minidist.data.clients import Clients, check_count
from minidist.engine.array import Array
from minidist.engine.digests import digest
from minidist.engine.seeds import draws, generator
from minidist.nn.loss import Loss
from minidist.nn.module import Module
from minidist.optim.optimizer import Optimizer
from minidist.parallel.method import Method


class NoClients(ValueError):
    """No client is left to train in a round."""


class Rounds(Method):
    """Base of federated methods: settings, clients and local batches. See FederatedAveraging."""

    exact = False
    changeable = Method.changeable | {
        *("microbatches", "fraction", "epochs", "local_batch", "local_lr", "gone")
    }

    def __init__(
        self,
        model: Module,
        loss: Loss,
        optimizer: Optimizer,
        comm: Comm,
        seed: int = 0,
        clients: Clients | int = 8,
        fraction: float = 1.0,
        epochs: int = 1,
        local_batch: int | None = None,
        local_lr: float | None = None,
        gone: Collection[int] = (),
        microbatches: int = 1,
        clip: float | None = None,
    ) -> None:
        super().__init__(model, loss, optimizer, comm, seed, microbatches, clip)
        if not isinstance(clients, Clients):
            check_count(clients)
        self.clients = clients
        for name, value in (
            ("fraction", fraction),
            ("epochs", epochs),
            ("local_batch", local_batch),
            ("local_lr", local_lr),
            ("gone", gone),
        ):
            self.check_setting(name, value)
            setattr(self, name, value)
        self.epoch = 0  # the current local epoch
        self.nobody = False  # whether the last round had no client
        self.model = model.init(seed)
        optimizer.bind(self.model.flat.slices)
        xp, data = self.model.flat.xp, self.model.flat.data
        self.start = data.copy()  # w
        self.change = xp.zeros_like(data)  # Σ of this rank's clients, then Δ

    fraction: float
    epochs: int
    local_batch: int | None
    local_lr: float | None
    gone: Collection[int]

    @property
    def client_count(self) -> int:
        """K."""
        return self.clients.count if isinstance(self.clients, Clients) else self.clients

    @property
    def copies(self) -> int:
        return self.client_count

    def check_setting(self, name: str, value: Any) -> None:
        super().check_setting(name, value)
        kind = type(self).__name__
        if name == "fraction" and not (
            isinstance(value, (int, float, np.floating)) and 0 < value <= 1
        ):
            raise ValueError(
                f"{kind}: the fraction of clients in a round must be in (0, 1], not {value!r}"
            )
        counts = isinstance(value, (int, np.integer)) and value >= 1
        if name == "epochs" and not counts:
            raise ValueError(f"{kind}: clients train for 1 or more epochs a round, not {value!r}")
        if name == "local_batch" and not (value is None or counts):
            raise ValueError(f"{kind}: a local batch has 1 or more samples, not {value!r}")
        if name == "local_lr" and value is not None and not value > 0:
            raise ValueError(f"{kind}: the clients' learning rate must be positive, not {value!r}")
        if name == "gone":
            if not isinstance(value, Collection):
                raise TypeError(
                    f"{kind}: gone is a set of clients, not {value!r}: write {{{value}}}"
                )
            unknown = [one for one in value if one not in range(self.client_count)]
            if unknown:
                raise ValueError(
                    f"{kind}: gone has client {unknown[0]!r}, and clients are numbered from 0 to "
                    f"{self.client_count - 1}"
                )

    # Clients and their samples

    def parts(self, batch: Batch) -> list[Batch]:
        """Each client's samples of the batch, as a separate batch.

        Raises ValueError if the clients belong to another dataset.
        """
        if not isinstance(self.clients, Clients):
            count = self.clients
            cut = [batch.shard(client, count).indices for client in range(count)]
        else:
            if len(self.clients.owner) != len(batch.dataset):
                raise ValueError(
                    f"{type(self).__name__}: the clients own {len(self.clients.owner)} samples, "
                    f"and {batch.dataset.name} has {len(batch.dataset)}: make Clients of the "
                    "dataset that is trained on"
                )
            cut = [batch.indices[places] for places in self.clients.places(batch.indices)]
        firsts = np.cumsum([0, *map(len, cut)]).tolist()
        return [
            replace(batch, indices=indices, first=first)
            for indices, first in zip(cut, firsts[:-1], strict=True)
        ]

    def samples(self, parts: Sequence[Batch]) -> list[float]:
        """n_k: the number of targets that count, by client."""
        return [part.own_count(self.loss) if len(part) else 0 for part in parts]

    def drawn(self, samples: Sequence[float]) -> list[int]:
        """The clients of this round: m of those that have data and are not gone.

        Raises NoClients if there are none.
        """
        present = [k for k, n in enumerate(samples) if n > 0 and k not in self.gone]
        if not present:
            raise NoClients(
                f"{type(self).__name__}: no client is left to train in round {self.steps}: of "
                f"{self.client_count} clients {len(set(self.gone))} are gone, and the others have "
                "no data in the batch"
            )
        m = max(round(self.fraction * len(present)), 1)
        order = generator(self.seed, "clients", self.steps).permutation(len(present))
        return sorted(present[place] for place in order[:m])

    def weights(self, samples: Sequence[float], drawn: Sequence[int]) -> dict[int, float]:
        """n_k / n of the drawn clients."""
        return shares(samples, drawn)

    def local_batches(self, client: int, part: Batch, epoch: int) -> list[Batch]:
        """One epoch of a client: its samples in random order, in batches of B."""
        size, indices = self.local_batch or len(part), part.indices
        if size < len(part):
            random = generator(self.seed, "client", client, self.steps, epoch)
            indices = random.permutation(indices)
        found = [
            replace(
                part,
                indices=indices[start : start + size],
                first=part.first + start,
                step=in_epoch(part.step, epoch),
            )
            for start in range(0, len(part), size)
        ]
        return [local for local in found if local.own_count(self.loss)]

    def arrays(self) -> dict[str, list[Array]]:
        found = super().arrays()
        found["parameters"].append(self.start)
        found["gradients"].append(self.change)
        return found

    # Checks and random draws

    def agree_on(self, drawn: Sequence[int]) -> None:
        """Raise Disagreement unless all ranks have the same clients and settings."""
        settings = (self.epochs, self.local_batch, self.rate())
        shown = f"clients {drawn}, {self.epochs} epochs of batches of {self.local_batch}"
        self.comm.agree("the round", digest(self.steps, drawn, *settings), shown)

    def rate(self) -> float:
        """η. Raises ValueError if it is not positive."""
        rate = self.local_lr or self.optimizer.rates()[-1].lr
        if not rate > 0:
            raise ValueError(
                f"{type(self).__name__}: the optimizer's rate is {rate} in round {self.steps}, and "
                "clients cannot train at it: give them a local_lr"
            )
        return rate

    def draws_of(self, part: Batch) -> AbstractContextManager[None]:
        super().draws_of(part)
        return draws(self.seed, in_epoch(self.steps, self.epoch), part.positions)


def in_epoch(step: int, epoch: int) -> int:
    """The key of random draws in a local epoch; in epoch 0 it is that of serial training."""
    return step + (epoch << 32)


def shares(samples: Sequence[float], drawn: Sequence[int]) -> dict[int, float]:
    """For each drawn client its share of the drawn clients' samples."""
    total = sum(samples[client] for client in drawn)
    return {client: samples[client] / total if total else 0.0 for client in drawn}
