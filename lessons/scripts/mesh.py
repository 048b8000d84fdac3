"""Train on a mesh: data, pipeline and tensor parallelism at once.

    mpirun -n 4 python lessons/scripts/mesh.py --mesh pp=2,tp=2

Without mpirun the ranks of the mesh run in this one process.
"""

import argparse
from functools import partial
from math import prod

from minidist import launch
from minidist.data import Batches, fashion_mnist
from minidist.inspect import accuracy
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import SGD
from minidist.parallel import MeshParallel
from minidist.parallel.mesh.mesh import parse

STEPS = 240  # three epochs of the 10,000 images


def main(comm, lengths):
    training, test = fashion_mnist()
    batches = Batches(training, size=128, seed=0)
    optimizer = SGD(0.05, momentum=0.9)
    method = MeshParallel(mlp(), CrossEntropy(), optimizer, comm, mesh=lengths, microbatches=4)
    if comm.rank == 0:
        print(method.mesh)  # who is in which group
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
    parser = argparse.ArgumentParser(description="train on a mesh")
    parser.add_argument("--mesh", default="pp=2,tp=2", help="axes dp, pp and tp: dp=2,pp=2,tp=2")
    lengths = parse(parser.parse_args().mesh)
    launch(partial(main, lengths=lengths), ranks=prod(lengths.values()))
