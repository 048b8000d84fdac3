"""The training jobs of ``minidist bench scaling`` on real ranks, and their measurements.

    python -m mpi4py -m minidist.bench.scaling_jobs '{"models": ["mlp"], "steps": 8}'

The bench starts this program on 1 and on 2 MPI ranks. Every turn runs each of these jobs once, one
after another, so that they all run under the same load:

    strong    the batch of one rank, divided among all      flat, symmetric, overlapped, ZeRO-1
    weak      a whole batch for each rank                   the same four
    compute, communicate    a whole batch without all-reduce; the all-reduce of its gradients alone
    link      weak, flat and overlapped, on a link of 1 Gbit/s that needs no core

**Why a link?** Communication is hidden if the core computes while the network works. Between two
ranks of one machine there is no network: send and receive are copies, and the cores make them. If
all cores have a batch to compute, they are busy all the time (``cpu`` shows this). So a copy during
the computation is not hidden: it slows the computation down. In a cluster a network card moves the
bytes; the link emulates it. The rank (flat), or its communication stream (overlapped), first sleeps
for the time that the card would need by the formula, and then runs the ring. The same code then
hides the share that its formula predicts.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np

from minidist.collectives import ring
from minidist.comm.comm import Comm
from minidist.comm.launcher import launch
from minidist.comm.machine import profile
from minidist.data import Batches, Dataset
from minidist.data.batches import Batch
from minidist.engine.array import Array
from minidist.models import gpt, mlp
from minidist.nn import CrossEntropy
from minidist.nn.layers import Sequential
from minidist.optim import SGD, AdamW, Optimizer
from minidist.parallel import (
    AllReduce,
    Buckets,
    DataParallel,
    Method,
    Overlapped,
    Pipeline,
    SymmetricDataParallel,
    TensorParallel,
    Zero1,
)
from minidist.parallel.method import training_flops
from minidist.parallel.simulation import simulate

MARK = "minidist-scaling:"  # the beginning of the line with the results
LINK = profile("gigabit")
BUCKET_MB = 2.0


@dataclass(frozen=True)
class Job:
    """A model, and the batch of one rank in weak scaling (of all ranks in strong scaling).

    ``shape``: an MLP's widths; a GPT's vocabulary, context, width, layers and heads.
    """

    shape: tuple[int, ...]
    batch: int
    optimizer: Callable[[], Optimizer]

    def model(self) -> Sequential:
        raise TypeError(f"{type(self).__name__} does not define model()")

    def data(self, count: int) -> Dataset:
        """Random samples: only the time of a step matters here."""
        raise TypeError(f"{type(self).__name__} does not define data()")


class MlpJob(Job):
    def model(self) -> Sequential:
        return mlp(self.shape)

    def data(self, count: int) -> Dataset:
        random = np.random.default_rng(0)
        pixels = random.standard_normal((count, self.shape[0]), np.float32)
        return Dataset("images", pixels, random.integers(0, self.shape[-1], count), self.shape[-1])


class GptJob(Job):
    def model(self) -> Sequential:
        vocabulary, context, width, layers, heads = self.shape
        return gpt(vocabulary, context, width, layers, heads)

    def data(self, count: int) -> Dataset:
        vocabulary, context, *_ = self.shape
        tokens = np.random.default_rng(0).integers(0, vocabulary, (count, context + 1))
        return Dataset("text", tokens[:, :-1], tokens[:, 1:], vocabulary)


# The largest MLP, the MLP of small layers, and the middle GPT of ``minidist bench engine``.
JOBS: dict[str, Job] = {
    "mlp": MlpJob((784, 1024, 1024, 10), 512, lambda: SGD(0.05, 0.9)),
    "small": MlpJob((784, 128, 127, 126, 125, 124, 123, 10), 128, lambda: SGD(0.05)),
    "gpt": GptJob((96, 128, 256, 4, 8), 8, lambda: AdamW(1e-3)),
}


def link_seconds(comm: Comm, array: Array) -> float:
    """Seconds of a ring all-reduce of ``array`` on the link."""
    rounds = 2 * (comm.size - 1)
    return rounds * LINK.message(array.nbytes // comm.size)


class AllReduceOnLink(AllReduce):
    """An all-reduce that takes as long as on the link."""

    def all_reduce(self, comm: Comm, array: Array) -> None:
        time.sleep(link_seconds(comm, array))
        super().all_reduce(comm, array)


class BucketsOnLink(Buckets):
    """The same with buckets: the communication stream sleeps."""

    def sum(self, stream: Comm, part: slice) -> None:
        time.sleep(link_seconds(stream, self.model.flat.grad_and_loss[part]))
        super().sum(stream, part)


def time_job(name: str, comm: Comm, steps: int) -> list[dict[str, Any]]:
    """Rows: the job, the slowest rank's time of each step, samples a second."""
    job = JOBS[name]
    weak = job.batch * comm.size
    dataset = job.data(max(64, weak))

    def build(kind: Callable[..., Method], comm: Comm, **options: Any) -> Any:
        return kind(job.model(), CrossEntropy(), job.optimizer(), comm, **options)

    buckets = {"bucket_mb": BUCKET_MB}
    methods: dict[str, Method] = {
        "flat": build(DataParallel, comm),
        "symmetric": build(SymmetricDataParallel, comm),
        "overlapped": build(Overlapped, comm, **buckets),
        "ZeRO-1": build(Zero1, comm),
        "tensor": build(TensorParallel, comm),
        "1F1B": build(Pipeline, comm, schedule="1f1b", microbatches=4),
    }
    if isinstance(job, GptJob):
        methods["tensor, sequence"] = build(TensorParallel, comm, sequence=True)
    parts: dict[str, tuple[Callable[[Batch], object], int]] = {}
    for kind, method in methods.items():
        parts[f"strong, {kind}"] = method.step, job.batch
        parts[f"weak, {kind}"] = method.step, weak
    if comm.size > 1:
        alone = build(DataParallel, comm.split(comm.rank))
        total = methods["flat"].model.flat.grad_and_loss
        linked = build(DataParallel, comm, sync=BucketsOnLink(BUCKET_MB))
        parts |= {
            "compute": (alone.step, job.batch),
            "communicate": (lambda batch: ring.all_reduce(comm, total), weak),
            "link, flat": (build(DataParallel, comm, sync=AllReduceOnLink()).step, weak),
            "link, overlapped": (linked.step, weak),
        }
    measured = in_turn(comm, dataset, parts, steps)
    rows = [
        {
            "model": name,
            "library": "minidist",
            "ranks": comm.size,
            "what": what,
            "samples": size,
            "times": measured[0, index].tolist(),
            "cpu": measured[1, index].tolist(),
        }
        for index, (what, (_, size)) in enumerate(parts.items())
    ]
    if comm.size > 1:
        compute = median(rows[list(parts).index("compute")]["times"])
        rows[-1]["link_seconds"] = link_seconds(comm, total)
        rows[-1]["saved_by_formula"] = saved_by_formula(job, comm.size, dataset, compute)
    return rows


def saved_by_formula(job: Job, ranks: int, dataset: Dataset, compute: float) -> float:
    """Seconds saved by overlapping in a step on the link, if a batch takes ``compute`` seconds.

    Both steps are simulated, on shapes.
    """
    flops = sum(training_flops(job.model(), (job.batch, *dataset.input_shape)))
    # The additions of the ring come after the link's time; the core does them in both cases.
    machine = replace(LINK, flops=flops / compute, reduce_bandwidth=float("inf"))
    batches = Batches(dataset, job.batch * ranks)

    def seconds(sync: Callable[[], AllReduce | Buckets]) -> float:
        def make(comm: Comm) -> Method:
            return DataParallel(job.model(), CrossEntropy(), job.optimizer(), comm, sync=sync())

        return simulate(make, batches, ranks, machine).step_seconds

    return seconds(AllReduce) - seconds(lambda: Buckets(BUCKET_MB))


def in_turn(
    comm: Comm,
    dataset: Dataset,
    parts: dict[str, tuple[Callable[[Batch], object], int]],
    steps: int,
) -> np.ndarray:
    """Seconds (wall or cpu, part, step) of the slowest rank, after two warm-up turns."""
    found = np.zeros((2, len(parts), steps))
    for step in range(-2, steps):
        for index, (function, size) in enumerate(parts.values()):
            batch = Batches(dataset, size)[0]
            comm.barrier()
            wall, cpu = time.perf_counter(), time.process_time()
            function(batch)
            if step >= 0:
                found[0, index, step] = time.perf_counter() - wall
                found[1, index, step] = time.process_time() - cpu
    ring.all_reduce(comm, found, "max")
    return found


def main() -> None:
    """Time the jobs, on every MPI rank; rank 0 prints the results."""
    options = json.loads(sys.argv[1])

    def run(comm: Comm) -> list[dict[str, Any]]:
        return [
            found for name in options["models"] for found in time_job(name, comm, options["steps"])
        ]

    rows = launch(run)[0]
    if int(os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK", "0"))) == 0:
        print(MARK + json.dumps(rows), flush=True)


if __name__ == "__main__":
    main()
