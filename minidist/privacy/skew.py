"""The effect of skewed labels: accuracy of federated averaging and FedProx for several splits.

    python -m minidist.privacy.skew out/skew       # writes skew.json and skew.png there

Clients own Fashion-MNIST by a Dirichlet split: α = 100 is nearly even; with α = 0.1 a client has
most of its samples from few classes. All other settings are equal. The split, the initial weights,
the drawn clients and the orders of samples depend on the seed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minidist.comm.launcher import launch
from minidist.comm.local.world import LocalWorld
from minidist.data import fashion_mnist
from minidist.data.clients import by_dirichlet
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import SGD
from minidist.plots import save
from minidist.privacy.fedprox import FedProx

SETTING = {"fraction": 0.5, "epochs": 5, "local_batch": 32}
RATE, CLIENTS = 0.05, 10


def reached(alpha: float, mu: float, seed: int, rounds: int) -> list[float]:
    """Test accuracy after each round; ``mu`` = 0 is federated averaging."""
    train, test = fashion_mnist()
    clients = by_dirichlet(train, CLIENTS, alpha, seed)

    def main(comm: Any) -> list[float]:
        model, loss = mlp((784, 64, 10)), CrossEntropy()
        method = FedProx(*(model, loss, SGD(RATE), comm, seed), clients=clients, mu=mu, **SETTING)
        batch, found = train.batch(np.arange(len(train))), []
        for _ in range(rounds):
            method.step(batch)
            found.append(method.evaluate(test)[1])
        return found

    return launch(main, 1, LocalWorld())[0]


def sweep(
    alphas: Sequence[float], mus: Sequence[float], seeds: Sequence[int], rounds: int
) -> list[dict[str, Any]]:
    """A row for each run: alpha, mu, seed and the accuracies by round."""
    rows = []
    for alpha in alphas:
        for mu in mus:
            for seed in seeds:
                found = reached(alpha, mu, seed, rounds)
                rows.append({"alpha": alpha, "mu": mu, "seed": seed, "accuracy": found})
                print(f"alpha {alpha:6} mu {mu:4} seed {seed}: {found[-1]:.1%}", flush=True)
    return rows


def mean_and_spread(
    rows: Sequence[dict[str, Any]], alpha: float, mu: float, last: int = 5
) -> tuple[float, float]:
    """(mean, standard deviation) over seeds of the mean accuracy of the last rounds, in percent."""
    found = [
        100 * np.mean(row["accuracy"][-last:])
        for row in rows
        if (row["alpha"], row["mu"]) == (alpha, mu)
    ]
    return float(np.mean(found)), float(np.std(found, ddof=1)) if len(found) > 1 else 0.0


def draw(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """Accuracy against α, a line for each μ; bars are standard deviations over seeds."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    alphas = sorted({row["alpha"] for row in rows})
    for number, mu in enumerate(sorted({row["mu"] for row in rows})):
        found = [mean_and_spread(rows, alpha, mu) for alpha in alphas]
        means, spreads = zip(*found, strict=True)
        places = np.array(alphas) * 1.04**number  # beside each other
        name = f"FedProx, μ = {mu}" if mu else "federated averaging"
        axes.errorbar(places, means, spreads, marker="o", capsize=3, label=name)
    axes.set_xscale("log")
    axes.set_xlabel("α of the Dirichlet split: skewed ← → even")
    axes.set_ylabel("accuracy on test images, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    found_at = save(figure, path)
    plt.close(figure)
    return found_at


def main(folder: Path) -> None:
    """The sweep of the documentation: 4 splits, 3 values of μ, 3 seeds, 20 rounds."""
    folder.mkdir(parents=True, exist_ok=True)  # first, so that an error appears before training
    rows = sweep((0.1, 0.3, 1.0, 100.0), (0.0, 0.1, 1.0), (0, 1, 2), 20)
    (folder / "skew.json").write_text(json.dumps(rows))
    for alpha in (0.1, 0.3, 1.0, 100.0):
        cells = [mean_and_spread(rows, alpha, mu) for mu in (0.0, 0.1, 1.0)]
        print(f"| {alpha:g} |", " | ".join(f"{m:.1f} ± {s:.1f}" for m, s in cells), "|")
    print(draw(rows, folder / "skew.png"))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/skew"))
