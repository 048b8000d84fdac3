"""Train with a parameter server that does not wait: the fastest worker is at most 2 clocks ahead.

    mpirun -n 4 python lessons/scripts/stale_parameter_server.py

Without mpirun the four ranks run in this one process.
"""

from collections import Counter

from minidist import launch
from minidist.data import Batches, fashion_mnist
from minidist.inspect import accuracy
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import SGD
from minidist.optim.schedules import linear
from minidist.parallel import StaleParameterServer

STEPS = 240  # three epochs of the 10,000 images


def main(comm):
    training, test = fashion_mnist()
    batches = Batches(training, size=128, seed=0)
    updates = STEPS * max(1, comm.size - 1)  # one for each push
    optimizer = SGD(linear(0.3, updates))
    method = StaleParameterServer(mlp(), CrossEntropy(), optimizer, comm, staleness=2)
    for start in range(0, STEPS, 40):
        losses = method.train([batches[step] for step in range(start, start + 40)])  # no waiting
        if comm.rank == 0:
            print(f"step {start:4}  loss {losses[0]:.4f}")
    parameters = method.parameters()  # call it on every rank; rank 0 uses the result
    if comm.rank == 0:  # the server
        staleness = Counter(update.staleness for update in method.updates)
        print("updates by staleness:", dict(sorted(staleness.items())))
        reached = accuracy(mlp().init().load(parameters), test)
        print(f"test accuracy {reached:.1%}")


if __name__ == "__main__":
    launch(main, ranks=4)
