"""Train by pipeline parallelism: every rank holds some of the layers.

    mpirun -n 4 python lessons/scripts/pipeline.py

Without mpirun the four ranks run in this one process.
"""

from minidist import launch
from minidist.data import Batches, fashion_mnist
from minidist.inspect import accuracy
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import SGD
from minidist.parallel import Pipeline

STEPS = 240  # three epochs of the 10,000 images


def main(comm):
    training, test = fashion_mnist()
    batches = Batches(training, size=128, seed=0)
    optimizer = SGD(0.05, momentum=0.9)
    method = Pipeline(mlp(), CrossEntropy(), optimizer, comm, schedule="gpipe", microbatches=8)
    for step in range(STEPS):
        loss = method.step(batches[step])  # the global batch: the method takes its own part
        if comm.rank == 0 and step % 40 == 0:
            print(f"step {step:4}  loss {loss:.4f}")
    sent = comm.trace.sent.nbytes
    parameters = method.parameters()  # call it on every rank; rank 0 uses the result
    if comm.rank == 0:
        reached = accuracy(mlp().init().load(parameters), test)
        print(f"test accuracy {reached:.1%}; rank 0 sent {sent / 1e6:,.1f} MB in {STEPS} steps")


if __name__ == "__main__":
    launch(main, ranks=4)
