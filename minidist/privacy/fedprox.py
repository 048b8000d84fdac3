"""FedProx: a client may not go far from the model that it was given.

Clients whose data differ pull towards different models. The more local steps they take, the further
apart they are when they are averaged, and the average of good models need not be good. FedProx adds
to each client's loss a spring to the round's global model w, the proximal term:

    F_k(v) + μ/2 ‖v - w‖²          so in each local step:  v ← v - η (∇F_k(v) + μ (v - w))

With μ = 0 it is federated averaging. The first local step of a round starts at v = w, where the
spring does not pull; so one local step a round is synchronous training with any μ. Messages, bytes
and memory are those of ``federated.py``. Li et al., "Federated optimization in heterogeneous
networks", MLSys 2020 (arXiv 1812.06127), algorithm 2.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from minidist.comm.comm import Comm
from minidist.data.clients import Clients
from minidist.nn.loss import Loss
from minidist.nn.module import Module
from minidist.optim.optimizer import Optimizer
from minidist.privacy.federated import FederatedAveraging


class FedProx(FederatedAveraging):
    """Federated averaging with a proximal term of strength ``mu``."""

    changeable = FederatedAveraging.changeable | {"mu"}

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
        mu: float = 0.1,
        gone: Collection[int] = (),
        microbatches: int = 1,
        clip: float | None = None,
    ) -> None:
        self.check_setting("mu", mu)
        self.mu = mu
        super().__init__(
            *(model, loss, optimizer, comm, seed, clients, fraction, epochs, local_batch),
            *(local_lr, gone, microbatches, clip),
        )

    def check_setting(self, name: str, value: Any) -> None:
        super().check_setting(name, value)
        if name == "mu" and not value >= 0:
            raise ValueError(f"{type(self).__name__}: mu pulls back with 0 or more, not {value!r}")

    def local_step(self, rate: float) -> None:
        """v ← v - η (∇F_k(v) + μ (v - w))."""
        flat = self.model.flat
        flat.grad += self.mu * (flat.data - self.start)
        super().local_step(rate)
