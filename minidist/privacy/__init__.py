"""Learn from data without telling what is in it.

Read in this order: ``per_sample.py`` and ``outer.py`` (the gradient of each sample), ``dp_sgd.py``
(clipped and noisy), ``sampling.py`` (which samples a step sees), ``accountant.py`` (what all steps
together give away), ``attack.py`` and ``matching.py`` (what a gradient without noise gives away).
Then ``rounds.py`` and ``federated.py`` (clients keep their data), ``client_privacy.py``, and
``secure_sum.py`` (a server that sees sums).
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
