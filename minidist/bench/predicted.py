"""Predicted against measured: the simulated seconds of a step beside those of real MPI ranks.

    mpiexec -n 2 python -m mpi4py -m minidist.bench.predicted

Rank 0 first calibrates a ``Machine`` on layers alone: the launch, the bytes and the FLOPs a second
that fit their times best. Two ranks add what a message and a reduction cost. Then the machine is
left alone: steps of whole models are measured, and simulated on it. A row has the median of many
steps, on the slowest rank. One rank never waits, so its steps are measured in processor time, as
the layers are: what else runs on the machine disturbs that little. Of several ranks it is the time
on the wall, which means something on an idle machine only.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from minidist import nn
from minidist.collectives import all_reduce, central
from minidist.collectives.calibrate import calibrate
from minidist.comm.comm import Comm
from minidist.comm.launcher import launch
from minidist.comm.machine import Machine
from minidist.data import Batches, Dataset
from minidist.engine import array as arrays
from minidist.engine.array import work
from minidist.engine.tensor import Tensor
from minidist.models import cnn, gpt, mlp
from minidist.optim import SGD, Adam, Optimizer
from minidist.parallel import DataParallel, Method, Pipeline, Zero1, simulate

MARK = "minidist-predicted:"  # the beginning of the line with the results
Job = tuple[Callable[[], nn.Sequential], Dataset, int]


def layers() -> Iterator[tuple[Callable[[], nn.Module], tuple[int, ...]]]:
    """What the machine is calibrated on: layers alone, at a few sizes, and their inputs' shapes."""
    for rows, width in ((64, 64), (128, 256), (256, 512), (512, 1024)):
        yield partial(nn.Linear, width, width), (rows, width)
        for kind in (nn.ReLU, nn.GELU, partial(nn.LayerNorm, width)):
            yield kind, (rows, width)
    for images, channels, pixels in ((16, 1, 28), (64, 16, 14)):
        shape = images, channels, pixels, pixels
        yield partial(nn.Conv2d, channels, 16, 3, padding=1), shape
        yield partial(nn.MaxPool2d, 2), shape
    for batch, length, width in ((4, 32, 64), (4, 64, 128), (8, 64, 256)):
        yield partial(nn.CausalSelfAttention, width, 4), (batch, length, width)


def forward_and_backward(make: Callable[[], nn.Module], shape: tuple[int, ...], device: str) -> Any:
    """A function that does both, on one device."""
    layer, xp = make().init(0, device=device), arrays.module(device)
    x = arrays.to_device(np.random.default_rng(0).standard_normal(shape).astype("f"), device)
    grad = xp.ones(layer(Tensor(x)).shape, np.float32)

    def run() -> None:
        layer.zero_grad()
        layer(Tensor(x, requires_grad=True)).backward(grad)

    return run


def stepping(make: Callable[[], Optimizer], shape: tuple[int, ...], device: str) -> Any:
    """A function that steps an optimizer once."""
    optimizer, xp = make(), arrays.module(device)
    data, grad = xp.zeros(shape, np.float32), xp.zeros(shape, np.float32)
    return lambda: optimizer.step(data, grad)


def calibrated(seconds: float = 0.15) -> Machine:
    """The launch, memory bandwidth and FLOPs a second that fit the layers' times best.

    Least squares of the logarithms, so that each layer counts alike, whatever its size.
    """
    cases = [partial(forward_and_backward, make, shape) for make, shape in layers()]
    for count in (10_000, 1_000_000):
        cases += [
            partial(stepping, partial(SGD, 0.1, momentum=0.9), (count,)),
            partial(stepping, Adam, (count,)),
        ]
    counts, times = [], []
    for case in cases:
        real, shapes = case("cpu"), case("phantom")
        real(), shapes()
        before = work.counts()
        shapes()
        flops, kernels, moved, _ = (b - a for a, b in zip(before, work.counts(), strict=True))
        counts.append((kernels, moved, flops))
        times.append(middle(real, seconds))
    table, target = np.array(counts, float), np.log(times)
    prices = np.array([3e-6, 1e-10, 3e-11])
    for _ in range(200):  # Gauss-Newton on the logarithms of the prices: they stay positive
        guess = table @ prices
        slope = table * prices / guess[:, None]
        step = np.linalg.lstsq(slope, target - np.log(guess), rcond=None)[0]
        prices *= np.exp(np.clip(step, -0.5, 0.5))
    launch_seconds, per_byte, per_flop = (float(price) for price in prices)
    return replace(
        Machine("calibrated"), launch=launch_seconds, memory_bandwidth=1 / per_byte,
        flops=1 / per_flop,
    )  # fmt: skip


def middle(run: Callable[[], object], seconds: float) -> float:
    """The median processor time of a call, among those that fit into ``seconds``."""
    times, end = list[float](), time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        start = time.thread_time()
        run()
        times.append(time.thread_time() - start)
    return median(times)


def jobs() -> dict[str, Job]:
    """A model, its data and the global batch, by name."""
    random = np.random.default_rng(0)
    pixels = random.standard_normal((256, 784), np.float32)
    images, labels = pixels.reshape(-1, 28, 28), random.integers(0, 10, 256)
    tokens = random.integers(0, 64, (64, 65))
    return {
        "MLP": (lambda: mlp((784, 512, 512, 512, 10)), Dataset("i", pixels, labels, 10), 128),
        "CNN": (lambda: cnn(8), Dataset("i", images, labels, 10), 64),
        "GPT": (
            lambda: gpt(64, 64, 128, 4, 4),
            Dataset("t", tokens[:, :-1], tokens[:, 1:], 64),
            8,
        ),
    }


def methods(job: Job) -> dict[str, Callable[[Comm], Method]]:
    """By name, what makes the method."""
    model = job[0]

    def make(kind: Callable[..., Method], comm: Comm, **options: Any) -> Method:
        return kind(model(), nn.CrossEntropy(), Adam(), comm, **options)

    return {
        "data parallel": partial(make, DataParallel),
        "ZeRO-1": partial(make, Zero1),
        "1F1B": partial(make, Pipeline, schedule="1f1b", microbatches=4),
    }


def run(comm: Comm) -> list[dict[str, Any]]:
    """The rows, on rank 0."""
    machine = calibrated() if comm.rank == 0 else Machine()
    found = np.array([machine.flops])
    central.broadcast(comm, found)
    if comm.size > 1:
        between = calibrate(comm, float(found[0]))
        links = {n: getattr(between, n) for n in ("latency", "bandwidth", "reduce_bandwidth")}
        machine = replace(machine, **links)
    rows, now = [], time.perf_counter if comm.size > 1 else time.thread_time
    for model, job in jobs().items():
        batches = Batches(job[1], job[2])
        for name, make in methods(job).items():
            if comm.size == 1 and name != "data parallel":
                continue
            method, times = make(comm), []
            for _ in range(60):
                comm.barrier()
                start = now()
                method.step(batches[0])
                slowest = np.array([now() - start])
                all_reduce(comm, slowest, "max")
                times.append(float(slowest[0]))
            if comm.rank == 0:
                simulated = simulate(make, batches, comm.size, machine, steps=2).seconds[-1]
                rows.append(
                    {
                        "model": model,
                        "method": name,
                        "ranks": comm.size,
                        "measured_ms": 1e3 * median(times),
                        "least_ms": 1e3 * min(times),
                        "predicted_ms": 1e3 * simulated,
                    }
                )
    return [{"machine": vars(machine)}, *rows]


if __name__ == "__main__":
    result = launch(run, 1)[0]
    if result[1:]:
        print(MARK, json.dumps(result, default=str))
        machine = result[0]["machine"]
        wanted = ("launch", "memory_bandwidth", "flops", "latency", "bandwidth", "reduce_bandwidth")
        print({name: f"{machine[name]:.3g}" for name in wanted}, file=sys.stderr)
        for row in result[1:]:
            error = row["predicted_ms"] / row["measured_ms"] - 1
            print(
                f"{row['model']:4} {row['method']:14} {row['ranks']} ranks: measured "
                f"{row['measured_ms']:.2f} ms, predicted {row['predicted_ms']:.2f}, {error:+.0%}",
                file=sys.stderr,
            )
