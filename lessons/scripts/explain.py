"""Train a model, then explain it: each rank draws the maps of its part of the test images.

    mpirun -n 4 python lessons/scripts/explain.py

Without mpirun the four ranks run in this one process. Only three sums travel.
"""

import numpy as np

from minidist import launch
from minidist.collectives import all_reduce
from minidist.data import Batches, fashion_mnist
from minidist.explain import cascade, completeness_gap, gradient, integrated_gradients
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import SGD
from minidist.parallel import DataParallel

STEPS, IMAGES = 240, 100


def main(comm):
    training, test = fashion_mnist()
    batches = Batches(training, size=128, seed=0)
    method = DataParallel(mlp(), CrossEntropy(), SGD(0.05, momentum=0.9), comm)
    for step in range(STEPS):
        method.step(batches[step])
    _, reached = method.evaluate(test)

    part = test.batch(np.arange(IMAGES)).shard(comm.rank, comm.size).inputs
    maps = integrated_gradients(method.model, part, steps=64)
    gaps = completeness_gap(maps, method.model, part)
    *_, alike = cascade(gradient, method.model, part).values()  # with all weights random
    sums = np.array([gaps.sum(), alike.sum(), len(part)])
    all_reduce(comm, sums)
    if comm.rank == 0:
        gap, correlation = sums[:2] / sums[2]
        print(f"test accuracy {reached:.1%}; of {IMAGES} maps the sums are off by {gap:.2%}, and")
        print(f"gradients with random weights have a rank correlation of {correlation:.2f} to them")


if __name__ == "__main__":
    launch(main, ranks=4)
