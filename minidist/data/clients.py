"""Clients of federated learning: which client owns each sample of a dataset.

    owner of sample 0, 1, 2, ...     3 0 0 2 3 1 ...        a client's number for each sample

In practice a client (a phone, a hospital) does not have a random part of all data. Two ways to
divide a dataset:

    evenly(dataset, 10)               at random: all clients have similar data
    by_dirichlet(dataset, 10, 0.3)    skewed: each client has most of its samples from few classes,
                                      and the clients have unequal numbers of samples

For each class the second draws the clients' shares (p_1, ..., p_K) from a Dirichlet distribution
with all parameters α. A small α gives nearly all of a class to one client; with α → ∞ all shares
are 1/K. Yurochkin et al., "Bayesian nonparametric federated learning of neural networks", ICML 2019
(arXiv 1905.12022), section 4. Draws are keyed by the seed, so all ranks get the same clients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from minidist.data.batches import Dataset
from minidist.engine.seeds import generator


@dataclass(frozen=True)
class Clients:
    """``owner`` (n,): the client, 0 ... count - 1, of each sample of a dataset.

    Raises TypeError or ValueError for owners that are no such numbers.

    >>> clients = Clients(np.array([0, 2, 2, 0, 1]), 3)
    >>> clients.samples(2)
    array([1, 2])
    """

    owner: np.ndarray
    count: int

    def __post_init__(self) -> None:
        check_count(self.count)
        owner = np.asarray(self.owner)
        if owner.ndim != 1 or owner.dtype.kind not in "iu":
            raise TypeError(
                "clients: owner must be an array with one integer for each sample, not "
                f"{owner.dtype} of shape {owner.shape}"
            )
        if owner.size and not (owner.min() >= 0 and owner.max() < self.count):
            raise ValueError(
                f"clients: owners go from {owner.min()} to {owner.max()}, and {self.count} clients "
                f"are numbered from 0 to {self.count - 1}"
            )
        object.__setattr__(self, "owner", owner)

    def samples(self, client: int) -> np.ndarray:
        """The indices of the samples that a client owns."""
        return np.flatnonzero(self.owner == client)

    def sizes(self) -> np.ndarray:
        """The number of samples of each client: (count,)."""
        return np.bincount(self.owner, minlength=self.count)

    def places(self, indices: np.ndarray) -> list[np.ndarray]:
        """For each client, the positions of its samples in ``indices``."""
        owner = self.owner[indices]
        order = np.argsort(owner, kind="stable")
        ends = np.cumsum(np.bincount(owner, minlength=self.count))
        return np.split(order, ends[:-1])


def evenly(dataset: Dataset, count: int, seed: int = 0) -> Clients:
    """Clients with equal numbers of random samples, as far as ``count`` divides them.

    Raises ValueError if a client gets no data.
    """
    check_count(count)
    owner = np.empty(len(dataset), np.int64)
    owner[generator(seed, "clients", "evenly").permutation(len(dataset))] = (
        np.arange(len(dataset)) * count // max(1, len(dataset))
    )
    return having_data(Clients(owner, count), dataset, "use fewer clients")


def by_dirichlet(dataset: Dataset, count: int, alpha: float, seed: int = 0) -> Clients:
    """Label-skewed clients of unequal sizes: a smaller ``alpha`` gives more skew.

    Targets must be class numbers, one for each sample. Raises TypeError for other targets,
    ValueError if a client gets no data.
    """
    check_count(count)
    if not alpha > 0 or not np.isfinite(alpha):
        raise ValueError(f"by_dirichlet: alpha must be positive and finite, not {alpha}")
    targets: Any = np.asarray(dataset.targets)
    if targets.ndim != 1 or targets.dtype.kind not in "iu":
        raise TypeError(
            f"by_dirichlet: dataset {dataset.name} has targets {targets.dtype} of shape "
            f"{targets.shape}, but class numbers, one for each sample, are needed: use "
            "evenly(dataset, count), or Clients(owner, count)"
        )
    owner = np.empty(len(dataset), np.int64)
    for label in np.unique(targets):
        random = generator(seed, "clients", "by_dirichlet", label)
        where = random.permutation(np.flatnonzero(targets == label))
        shares = random.dirichlet(np.full(count, float(alpha)))  # p_1 ... p_K
        ends = np.round(np.cumsum(shares) * len(where)).astype(int)
        owner[where] = np.searchsorted(ends, np.arange(len(where)), side="right").clip(0, count - 1)
    return having_data(
        Clients(owner, count), dataset, f"use a larger alpha than {alpha}, fewer clients or "
        "another seed"
    )  # fmt: skip


def check_count(count: int) -> None:
    """Raise ValueError unless ``count`` is an integer of at least 1."""
    if not isinstance(count, (int, np.integer)) or count < 1:
        raise ValueError(f"clients: their number must be an integer ≥ 1, not {count!r}")


def having_data(clients: Clients, dataset: Dataset, instead: str) -> Clients:
    """``clients``. Raises ValueError if one has no data."""
    empty = np.flatnonzero(clients.sizes() == 0)
    if len(empty):
        some = ", ".join(map(str, empty[:5])) + (", ..." if len(empty) > 5 else "")
        raise ValueError(
            f"clients: {len(empty)} of {clients.count} own none of the {len(dataset)} samples of "
            f"{dataset.name} (client {some}), and cannot train: {instead}"
        )
    return clients
