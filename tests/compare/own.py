"""A task and methods of a user's own, as tests and the long job name them: tests.compare.own:..."""

from __future__ import annotations

from functools import partial

import numpy as np

from minidist.collectives import all_reduce
from minidist.compare import Task
from minidist.data import fashion_mnist
from minidist.models import mlp
from minidist.optim import SGD
from minidist.parallel import DataParallel, Method


class Plain(Method):
    """As in CONTRIBUTING: no formula of its cost."""

    def __init__(self, model, loss, optimizer, comm, seed=0):
        super().__init__(model, loss, optimizer, comm, seed)
        self.model = model.init(seed)

    def train_on(self, batch):
        self.model.zero_grad()
        loss = np.array([self.forward_backward(batch.shard(self.comm.rank, self.comm.size))])
        all_reduce(self.comm, self.model.flat.grad)
        all_reduce(self.comm, loss)
        self.update()
        return float(loss[0])


class Broken(Plain):
    """One rank fails, while the others wait for it."""

    def train_on(self, batch):
        return super().train_on(batch) if self.comm.rank else self.nowhere


class Stuck(Plain):
    """One rank leaves, and the others wait for it."""

    def train_on(self, batch):
        return super().train_on(batch) if self.comm.rank else 0.0


rows = {"plain": Plain, "tree": partial(DataParallel, algorithm="double_tree")}
by_mpi = {"by_mpi": partial(DataParallel, algorithm="library")}


def narrow():
    return Task("narrow", lambda: mlp((784, 16, 10)), fashion_mnist, lambda: SGD(0.05))
