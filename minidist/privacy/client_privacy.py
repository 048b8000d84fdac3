"""Federated averaging with privacy for clients: nobody can tell whether a client took part.

An average of models still tells of those who made it: a client with a rare word moves the weights
of that word. DP-FedAvg bounds what one client can do, and hides that much under noise:

    who       each of K clients takes part with probability q, by its own coin
    limit     Δ_k ← Δ_k · min(1, S / ‖Δ_k‖)          S is ``client_clip``; Δ_k = w - w_k
    average   Δ = Σ_k Δ_k / (qK) + N(0, σ²I),  σ = zS / (qK)          z is ``noise``

The sum is divided by the *expected* number of clients, so that one client more changes Δ by at most
S/(qK); and clients count alike, whatever data they have. The noise is z times that, drawn once for
the sum: not on each client (which would be m times the variance), nor on each rank. All ranks
draw the same numbers, keyed by (seed, "noise", round), so no message is needed. That makes runs
repeatable, and is a simulation: a server that means it draws from the operating system's randomness
and tells nobody.

T rounds with sampling probability q and noise multiplier z cost what T steps of DP-SGD do, of which
a "sample" is a client: ``epsilon_after`` asks ``accountant.py`` for ε. The loss that ``step``
returns is for people to see here; it has no noise, and publishing it is not covered. Nor are
buffers, such as batch norm's: such models are refused. In a round in which no coin falls on yes,
the loss is NaN, and the noise is added all the same. McMahan et al., "Learning differentially
private recurrent language models", ICLR 2018 (arXiv 1710.06963), algorithm 1 with weights of 1.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

from minidist.comm.comm import Comm
from minidist.data.clients import Clients
from minidist.engine.array import Array, made, module_of
from minidist.engine.seeds import generator
from minidist.nn.loss import Loss
from minidist.nn.module import Module
from minidist.optim.clip import clip_by_global_norm
from minidist.optim.optimizer import Optimizer
from minidist.privacy.accountant import epsilon_of
from minidist.privacy.federated import FederatedAveraging
from minidist.privacy.rounds import NoClients


class PrivateFederatedAveraging(FederatedAveraging):
    """``fraction`` is q, ``client_clip`` is S and ``noise`` is z of the formula above."""

    changeable = FederatedAveraging.changeable - {"fraction"}  # ε is that of one fraction
    unskippable = "a round that is left out has told that something was not finite"

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
        client_clip: float = 1.0,
        noise: float = 1.0,
        gone: Collection[int] = (),
        microbatches: int = 1,
        clip: float | None = None,
    ) -> None:
        if named := list(model.named_buffers()):
            raise ValueError(
                f"{type(self).__name__}: the model has buffers, such as {named[0]}, which clients "
                "would send without noise: take layers without, such as LayerNorm"
            )
        self.check_setting("client_clip", client_clip)
        self.check_setting("noise", noise)
        self.client_clip, self.noise = client_clip, noise
        super().__init__(
            *(model, loss, optimizer, comm, seed, clients, fraction, epochs, local_batch),
            *(local_lr, gone, microbatches, clip),
        )

    def check_setting(self, name: str, value: Any) -> None:
        super().check_setting(name, value)
        kind = type(self).__name__
        if name == "client_clip" and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{kind}: the norm of a client's change is limited to S > 0: {value}")
        if name == "noise" and not (value > 0 and math.isfinite(value)):
            raise ValueError(
                f"{kind}: a noise multiplier must be positive and finite, not {value}: without "
                "noise there is no privacy, and FederatedAveraging says so by its name"
            )

    def epsilon_after(self, steps: int, delta: float, conversion: str = "canonne") -> float:
        """ε of so many rounds at ``delta``, for whether a client took part: see accountant.py.

        ``method.epsilon_after(method.steps, 1e-3)`` is what has been spent, also before a ``load``.
        δ should be well below one over the number of clients.
        """
        return epsilon_of(self.fraction, self.noise, steps, delta, conversion)

    @property
    def expected(self) -> float:
        """qK."""
        return self.fraction * self.client_count

    def drawn(self, samples: Sequence[float]) -> list[int]:
        """Each client by its own coin; possibly nobody."""
        there = [k for k in range(self.client_count) if k not in self.gone]
        if not there:
            raise NoClients(
                f"{type(self).__name__}: all {self.client_count} clients are gone in round "
                f"{self.steps}: nobody is there to train"
            )
        coins = generator(self.seed, "clients", self.steps).random(self.client_count)
        return [k for k in there if coins[k] < self.fraction and samples[k] > 0]

    def stepped(self, loss: float) -> float:
        if not self.nobody:
            return super().stepped(loss)
        super().stepped(0.0)  # of nobody there is no loss, and nothing is wrong
        return math.nan

    def weights(self, samples: Sequence[float], drawn: Sequence[int]) -> dict[int, float]:
        return dict.fromkeys(drawn, 1 / self.expected)

    def limit(self, change: Array) -> None:
        clip_by_global_norm(change, self.client_clip)

    def finish(self) -> None:
        """N(0, σ²I), the same on every rank."""
        sigma = self.noise * self.client_clip / self.expected
        size, random = self.change.size, generator(self.seed, "noise", self.steps)
        self.change += made(
            lambda: sigma * random.standard_normal(size),
            (size,),
            self.change.dtype,
            module_of(self.change),
        )
