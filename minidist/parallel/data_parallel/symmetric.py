"""Data parallelism over symmetric memory: gradients are summed in shared memory, not sent.

Ranks of one machine can share memory. They put their gradients there. Rank r reads chunk r of every
rank's gradient, and writes the sum into chunk r of each:
``collectives/shared/symmetric_memory.py``.

    rank 0   shard 0 → forward, backward → gradient 0 ┐
    rank 1   shard 1 → forward, backward → gradient 1 ┼─ shared: rank r sums chunk r of all ranks
    rank 2   shard 2 → forward, backward → gradient 2 ┘

With p ranks and Ψ parameters of e bytes:

    messages a rank  2⌈lg p⌉, all empty: two barriers
    bytes a rank     0
    memory a rank    as ``DataParallel``
    time             T_f + T_b + 2⌈lg p⌉α + (Ψ + 1)e(p - 1)/p·γ

It needs ranks on one machine, and gradients on the host. PyTorch does the same between the GPUs of
a node, over NVLink (``torch.distributed._symmetric_memory``).
"""

from __future__ import annotations

import math

from minidist.collectives.cost import Cost
from minidist.collectives.shared import symmetric_memory
from minidist.comm.comm import Comm, CommError
from minidist.comm.machine import Machine
from minidist.engine.array import module_of, read
from minidist.nn.loss import Loss
from minidist.nn.module import Module
from minidist.optim.optimizer import Optimizer
from minidist.parallel.data_parallel.all_reduce import AllReduce
from minidist.parallel.data_parallel.data_parallel import DataParallel
from minidist.parallel.gradient_sync import Replicas


class SymmetricMemory(AllReduce):
    """One all-reduce at the end, of gradients in memory that all replicas share.

    ``bind`` raises CommError if the replicas are not on one machine, or the model is on a GPU.
    """

    all_at_end = True

    def __init__(self) -> None:
        super().__init__("symmetric_memory")

    def allocate(self, seed: int) -> None:
        super().allocate(seed)
        assert self.comm is not None
        flat = self.model.flat
        if hasattr(module_of(flat.grad), "cuda"):
            raise CommError(
                "symmetric data parallelism needs gradients in host memory, which the ranks of a "
                "machine can share: use DataParallel for a model on a GPU"
            )
        length, grad = flat.size + 1, flat.grad
        flat.hold_gradients(symmetric_memory.allocate(self.comm, length, grad.dtype, like=grad))

    def ready(self, part: slice) -> None:
        """Does nothing: two barriers for each chunk would cost more than overlap saves."""

    def finish(self) -> float:
        assert self.comm is not None
        total = self.model.flat.grad_and_loss
        total[-1] = self.loss
        with self.comm.step("all-reduce"):
            symmetric_memory.all_reduce(self.comm, total)
        return float(read(total[-1], math.nan))

    def all_pieces(self, of: Replicas) -> list[slice]:
        return [slice(0, of.nbytes // of.itemsize + 1)]

    def all_reduce_cost(self, length: int, of: Replicas, replica: int, machine: Machine) -> Cost:
        return symmetric_memory.all_reduce_cost(length, of.itemsize, replica, of.size, machine)


class SymmetricDataParallel(DataParallel):
    """``DataParallel`` with gradients in memory that all ranks share."""

    def __init__(
        self,
        model: Module,
        loss: Loss,
        optimizer: Optimizer,
        comm: Comm,
        seed: int = 0,
        microbatches: int = 1,
        clip: float | None = None,
    ) -> None:
        super().__init__(
            model,
            loss,
            optimizer,
            comm,
            seed,
            microbatches=microbatches,
            clip=clip,
            sync=SymmetricMemory(),
        )
