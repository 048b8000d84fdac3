"""Federated averaging: ten clients, each with its own kind of clothes, train one model together.

    mpirun -n 4 python lessons/scripts/federated.py

Without mpirun the four ranks run in this one process. No image leaves its client.
"""

import numpy as np

from minidist import launch
from minidist.data import fashion_mnist
from minidist.data.clients import by_dirichlet
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import SGD
from minidist.privacy import FederatedAveraging

ROUNDS = 15


def main(comm):
    training, test = fashion_mnist()
    clients = by_dirichlet(training, 10, alpha=1.0, seed=0)
    method = FederatedAveraging(
        *(mlp(), CrossEntropy(), SGD(0.05), comm),
        clients=clients,
        fraction=0.5,  # of the clients, in each round
        epochs=2,  # of each, through its own data
        local_batch=32,
    )
    everything = training.batch(np.arange(len(training)))  # a client takes what it owns of it
    for round in range(ROUNDS):
        loss = method.step(everything)
        if comm.rank == 0 and round % 5 == 0:
            print(f"round {round:3}  loss {loss:.4f}")
    _, reached = method.evaluate(test)  # every rank must call it
    if comm.rank == 0:
        sizes = clients.sizes()
        print(f"clients have {sizes.min()} to {sizes.max()} images; test accuracy {reached:.1%}")


if __name__ == "__main__":
    launch(main, ranks=4)
