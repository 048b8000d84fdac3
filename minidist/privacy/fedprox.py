"""FedProx: federated averaging that keeps each client's model near the global model.

Clients with different data train towards different models. The more local steps they make, the
more their models differ when they are averaged, and the average of good models need not be good.
FedProx adds a proximal term to each client's loss, which pulls v towards the round's global model
w:

    F_k(v) + μ/2 ‖v - w‖²          so in each local step:  v ← v - η (∇F_k(v) + μ (v - w))

With μ = 0 it is federated averaging. A round's first local step starts at v = w, where the proximal
term is 0; so with one local step in a round it is synchronous training, for any μ. Messages, bytes
and memory are those of ``federated.py``. Li et al., "Federated optimization in heterogeneous
networks", MLSys 2020 (arXiv 1812.06127), algorithm 2.
"""

from __future__ import annotations

from typing import Any

from minidist.privacy.federated import FederatedAveraging


class FedProx(FederatedAveraging):
    """``FederatedAveraging``, with its arguments; and ``mu``, the weight of the proximal term."""

    changeable = FederatedAveraging.changeable | {"mu"}

    def __init__(self, *args: Any, mu: float = 0.1, **options: Any) -> None:
        self.check_setting("mu", mu)
        self.mu = mu
        super().__init__(*args, **options)

    def check_setting(self, name: str, value: Any) -> None:
        super().check_setting(name, value)
        if name == "mu" and not value >= 0:
            raise ValueError(f"{type(self).__name__}: mu must be at least 0, not {value!r}")

    def local_step(self, rate: float) -> None:
        """v ← v - η (∇F_k(v) + μ (v - w))."""
        flat = self.model.flat
        flat.grad += self.mu * (flat.data - self.start)
        super().local_step(rate)
