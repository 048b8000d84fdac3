"""Learning from data that nobody may see."""

from __future__ import annotations

from minidist.lazy import offer

__getattr__, __dir__, __all__ = offer(
    __name__,
    {
        "rounds": ["NoClients"],
        "federated": ["FederatedAveraging"],
        "fedprox": ["FedProx"],
        "client_privacy": ["PrivateFederatedAveraging"],
        "fixed_point": ["FixedPoint"],
        "secure_sum": ["RoundEnded", "SecureClient", "SecureServer", "Stranger"],
        "secure_federated": ["SecureFederatedAveraging"],
        "variants": ["PRIVATE_METHODS"],
    },
)
