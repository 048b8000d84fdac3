"""Federated averaging with differential privacy for clients (DP-FedAvg).

An average of models can still reveal its clients: a client with a rare word changes the weights of
this word. DP-FedAvg bounds the influence of one client, and adds noise of about this size:

    sample    each of K clients takes part with probability q, independently
    clip      Δ_k ← Δ_k · min(1, S / ‖Δ_k‖)          S is ``client_clip``; Δ_k = w - w_k
    average   Δ = Σ_k Δ_k / (qK) + N(0, σ²I),  σ = zS / (qK)          z is ``noise``

The sum is divided by the *expected* number of clients, so one more client changes Δ by at most
S/(qK). Clients have equal weights, whatever the size of their data. The noise is drawn once for the
sum. All ranks draw the same numbers, keyed by (seed, "noise", round), so it needs no message. This
makes runs repeatable, but it is a simulation: a real server must use the operating system's
randomness and keep it secret.

T rounds with sampling probability q and noise multiplier z have the same ε as T steps of DP-SGD,
with clients as samples: see ``epsilon_after`` and ``accountant.py``. The loss that ``step`` returns
has no noise and is not private: do not publish it. Models with buffers, such as batch norm's, are
refused. If no client takes part in a round, the loss is NaN; the noise is still added. McMahan et
al., "Learning differentially private recurrent language models", ICLR 2018 (arXiv 1710.06963),
algorithm 1 with weights of 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from minidist.engine.array import Array, made, module_of
from minidist.engine.seeds import generator
from minidist.nn.module import Module
from minidist.optim.clip import clip_by_global_norm
from minidist.privacy.accountant import epsilon_of
from minidist.privacy.federated import FederatedAveraging
from minidist.privacy.rounds import NoClients


class PrivateFederatedAveraging(FederatedAveraging):
    """``FederatedAveraging``, with its arguments; and ``client_clip`` (S) and ``noise`` (z).

    ``fraction`` is q. Raises ValueError for a model with buffers, and unless S and z are positive
    and finite.
    """

    changeable = FederatedAveraging.changeable - {"fraction"}  # ε holds for one fraction
    unskippable = "skipping a round would reveal that a client's change was not finite"

    def __init__(
        self,
        model: Module,
        *args: Any,
        client_clip: float = 1.0,
        noise: float = 1.0,
        **options: Any,
    ) -> None:
        if named := list(model.named_buffers()):
            raise ValueError(
                f"{type(self).__name__}: the model has buffers, such as {named[0]}, which clients "
                "would send without noise: use layers without buffers, such as LayerNorm"
            )
        self.check_setting("client_clip", client_clip)
        self.check_setting("noise", noise)
        self.client_clip, self.noise = client_clip, noise
        super().__init__(model, *args, **options)

    def check_setting(self, name: str, value: Any) -> None:
        super().check_setting(name, value)
        kind = type(self).__name__
        if name == "client_clip" and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{kind}: client_clip must be positive and finite, not {value}")
        if name == "noise" and not (value > 0 and math.isfinite(value)):
            raise ValueError(
                f"{kind}: a noise multiplier must be positive and finite, not {value}: without "
                "noise there is no privacy: use FederatedAveraging"
            )

    def epsilon_after(self, steps: int, delta: float, conversion: str = "canonne") -> float:
        """ε of ``steps`` rounds at ``delta``, with respect to one client: see accountant.py.

        ``method.epsilon_after(method.steps, 1e-3)`` is the ε spent, including rounds before a
        ``load``. δ should be well below 1 / the number of clients.
        """
        return epsilon_of(self.fraction, self.noise, steps, delta, conversion)

    @property
    def expected(self) -> float:
        """qK."""
        return self.fraction * self.client_count

    def drawn(self, samples: Sequence[float]) -> list[int]:
        """The clients of this round, each with probability q; the list may be empty.

        Raises NoClients if all are gone.
        """
        present = [k for k in range(self.client_count) if k not in self.gone]
        if not present:
            raise NoClients(
                f"{type(self).__name__}: all {self.client_count} clients are gone in round "
                f"{self.steps}: no client is left to train"
            )
        uniform = generator(self.seed, "clients", self.steps).random(self.client_count)
        return [k for k in present if uniform[k] < self.fraction and samples[k] > 0]

    def stepped(self, loss: float) -> float:
        if not self.nobody:
            return super().stepped(loss)
        super().stepped(0.0)  # without clients there is no loss, but this is no error
        return math.nan

    def weights(self, samples: Sequence[float], drawn: Sequence[int]) -> dict[int, float]:
        return dict.fromkeys(drawn, 1 / self.expected)

    def limit(self, change: Array) -> None:
        clip_by_global_norm(change, self.client_clip)

    def finish(self) -> None:
        """Add N(0, σ²I) to Δ, the same on every rank."""
        sigma = self.noise * self.client_clip / self.expected
        size, random = self.change.size, generator(self.seed, "noise", self.steps)
        self.change += made(
            lambda: sigma * random.standard_normal(size),
            (size,),
            self.change.dtype,
            module_of(self.change),
        )
