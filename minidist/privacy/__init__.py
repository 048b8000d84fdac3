"""Learn from private data: differential privacy, federated learning, secure aggregation.

Read in this order: ``per_sample.py`` and ``outer.py`` (the gradient of each sample), ``dp_sgd.py``
(clipping and noise), ``sampling.py`` (the samples of a step), ``accountant.py`` (the ε of all
steps), ``attack.py`` and ``matching.py`` (reconstruct samples from gradients without noise). Then
``rounds.py`` and ``federated.py`` (clients keep their data), ``client_privacy.py``, and
``secure_sum.py`` (the server sees only sums).
"""

from __future__ import annotations

from minidist.lazy import offer

__getattr__, __dir__, __all__ = offer(
    __name__,
    {
        "outer": ["Outer"],
        "per_sample": ["NotBySample", "per_sample_gradients"],
        "sampling": ["PoissonBatch", "PoissonBatches"],
        "accountant": ["CONVERSIONS", "Accountant", "epsilon_of", "noise_for", "rdp_of_step"],
        "dp_sgd": ["BudgetSpent", "DPSGD"],
        "price": [],
        "attack": ["best_psnr", "invert_each", "invert_linear", "psnr"],
        "matching": ["gradients_of_mlp", "search"],
        "experiment": ["Curve", "accuracy_against_epsilon"],
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
