"""Buckets: groups of gradients, each all-reduced while the backward still computes the next.

    flat gradients   [ w1 ................ | b1 | w2 ...... | b2 | w3 .. | b3 | loss ]
    the backward     ◀──────────────────────────────────────────────────────── computes
    buckets          [     last: small     |   second       |    first: is sent first ]

The backward computes the last layers' gradients first, so buckets are sent in reverse order. Large
buckets need few messages, but start late. Small ones start early, but pay the latency α often. The
last bucket's communication cannot be overlapped, so it should be small.

With p replicas, Ψ parameters of e bytes in k buckets, rings, and T_f and T_b a rank's forward and
backward:

    messages a rank  2k(p - 1)
    bytes a rank     2(Ψ + 1)e(p - 1)/p, one element being the loss
    time             T_f + max(T_b + ring of the last bucket, first bucket's wait + all rings) if
                     communication never pauses; in general: ``parallel.simulate``

Li et al., "PyTorch Distributed", arXiv 2006.15704, section 3.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from minidist.collectives import ring
from minidist.collectives.series import Series
from minidist.comm.comm import Comm, Future
from minidist.comm.machine import Machine
from minidist.engine.array import read
from minidist.parallel.gradient_sync import Replicas
from minidist.parallel.in_order import SentInOrder, names_in
from minidist.parallel.model_costs import parameter_slices

MB = 1 << 20


@dataclass(frozen=True)
class Bucket:
    """A slice of the flat gradients, and the names of the parameters in it."""

    part: slice
    names: frozenset[str]


def cut_buckets(slices: dict[str, slice], size: int, last: int, loss: bool = True) -> list[Bucket]:
    """Parameters in reverse order, in buckets; a bucket is closed when it has ``size`` elements.

    The last bucket has the first parameters, up to ``last`` elements. The first bucket has the
    ``loss`` too, which is stored after the last parameter.
    """
    names = list(slices)
    if not names:
        return []
    first_layers = 1
    while first_layers < len(names) and slices[names[first_layers]].stop <= last:
        first_layers += 1
    groups: list[list[str]] = [[]]
    for name in reversed(names[first_layers:]):
        groups[-1].append(name)
        if slices[groups[-1][0]].stop - slices[name].start >= size:
            groups.append([])
    groups = [group for group in groups if group] + [names[first_layers - 1 :: -1]]
    buckets = []
    for group in groups:
        behind = 1 if loss and group[0] == names[-1] else 0
        part = slice(slices[group[-1]].start, slices[group[0]].stop + behind)
        buckets.append(Bucket(part, frozenset(group)))
    return buckets


class Buckets(SentInOrder):
    """Each bucket is all-reduced on the communication stream when its gradients are complete.

    A bucket is full at ``bucket_mb`` (MB of 2²⁰ bytes). The last one, which cannot be overlapped,
    has at most ``last_mb``, but at least one parameter. Every replica sends the same buckets in the
    same order. Gradients that no backward reaches are sent when it is over. Raises ValueError for a
    negative size.
    """

    def __init__(self, bucket_mb: float = 25.0, last_mb: float = 1.0) -> None:
        if not (bucket_mb >= 0 and last_mb >= 0):
            raise ValueError(
                f"Buckets: bucket_mb={bucket_mb} and last_mb={last_mb} are sizes in MB, at least "
                "0 (0: a bucket for each parameter)"
            )
        self.bucket_bytes, self.last_bytes = bucket_mb * MB, last_mb * MB
        self.sending: list[Future] = []

    def cut(self, slices: dict[str, slice], itemsize: int, sums_loss: bool) -> list[Bucket]:
        size, last = int(self.bucket_bytes / itemsize), int(self.last_bytes / itemsize)
        return cut_buckets(slices, size, last, sums_loss)

    def allocate(self, seed: int) -> None:
        super().allocate(seed)
        self.buckets = self.cut(self.model.flat.slices, self.itemsize, self.sums_loss)
        self.watch([bucket.names for bucket in self.buckets])

    def last_backward(self, loss: float = 0.0, part: slice | None = None) -> None:
        super().last_backward(loss, part)
        if self.sums_loss:
            self.model.flat.grad_and_loss[-1] = loss  # sent in the first bucket

    def ready(self, part: slice) -> None:
        self.launch(names_in(self.model.flat.slices, part))

    def send(self, index: int) -> None:
        assert self.comm is not None
        self.sending.append(self.comm.spawn(self.sum, self.buckets[index].part))

    def sum(self, stream: Comm, part: slice) -> None:
        ring.all_reduce(stream, self.model.flat.grad_and_loss[part])

    def finish(self) -> float:
        assert self.comm is not None
        own = super().finish()
        with self.comm.step("wait for buckets"):
            while self.sending:
                self.sending.pop(0).wait()
        summed = self.model.flat.grad_and_loss[-1]
        return float(read(summed, math.nan)) if self.sums_loss else own

    def plan(self, of: Replicas, seconds: list[float], machine: Machine) -> Series:
        """A ring for each bucket, while the ranks compute."""
        stream = Series(machine, of.size)
        for bucket in self.cut(parameter_slices(of.model), of.itemsize, of.sums_loss):
            stream.all_reduce(bucket.part.stop - bucket.part.start, of.itemsize)
        stream.busy = list(seconds)  # the reductions overlap with these
        stream.seconds = None  # how much is overlapped: only the simulation knows
        return stream
