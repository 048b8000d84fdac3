"""Train by tensor parallelism: every rank holds a part of every layer.

    mpirun -n 4 python lessons/scripts/tensor_parallel.py

Without mpirun the four ranks run in this one process.
"""

from minidist import launch
from minidist.data import Batches, fashion_mnist
from minidist.inspect import accuracy
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import SGD
from minidist.parallel import TensorParallel
from minidist.parallel.tensor import show

STEPS = 240  # three epochs of the 10,000 images


def main(comm):
    training, test = fashion_mnist()
    batches = Batches(training, size=128, seed=0)
    if comm.rank == 0:
        print(show(mlp(), comm.size))  # which parameter is cut how
    method = TensorParallel(mlp(), CrossEntropy(), SGD(0.05, momentum=0.9), comm)
    for step in range(STEPS):
        loss = method.step(batches[step])  # every rank works on all samples
        if comm.rank == 0 and step % 40 == 0:
            print(f"step {step:4}  loss {loss:.4f}")
    sent = comm.trace.sent.nbytes
    parameters = method.parameters()  # call it on every rank; rank 0 uses the result
    if comm.rank == 0:
        reached = accuracy(mlp().init().load(parameters), test)
        print(f"test accuracy {reached:.1%}; rank 0 sent {sent / 1e6:,.1f} MB in {STEPS} steps")


if __name__ == "__main__":
    launch(main, ranks=4)
