"""``PRIVATE_METHODS`` maps "method/variant" to its constructor; rows of ``minidist compare``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from minidist.parallel.method import Method
from minidist.privacy.client_privacy import PrivateFederatedAveraging
from minidist.privacy.dp_sgd import DPSGD
from minidist.privacy.federated import FederatedAveraging
from minidist.privacy.fedprox import FedProx

# Eight clients; half of them train in a round, in local batches of 8.
some: dict[str, Any] = {"clients": 8, "fraction": 0.5, "local_batch": 8}

PRIVATE_METHODS: dict[str, Callable[..., Method]] = {
    "private/dp_sgd": partial(DPSGD, sample_clip=1.0, noise=1.0),
    "federated/average": partial(FederatedAveraging, **some),
    "federated/prox": partial(FedProx, **some, mu=0.1),
    "federated/private": partial(
        PrivateFederatedAveraging,
        **some | {"fraction": 0.75},
        client_clip=0.1,
        noise=0.1,
    ),
}
