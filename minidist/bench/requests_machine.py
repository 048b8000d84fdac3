"""The machine on which the answering of requests is simulated: what it costs here, measured.

A step of inference is a hundred kernels of a few rows. Most of its time is what Python takes around
each kernel and for each sequence; the rest is mostly reading weights and writing small arrays.

    seconds of a step = Σ over kernels  launch + max(FLOPs / F, bytes / B)  +  sequences · s

F          a linear layer on 16 rows, more than a step of 8 sequences has and less than most prompts
B          one on a single row, which reads weights that are in no cache, and then scaling as many
           numbers in place, which are: bytes of both over the seconds of both
           From each time that of a few numbers is taken off.
launch, s  rounds of two tiny GPTs, whose arrays are a few numbers, with 1 and 8 sequences: least
           squares of the relative errors, given F and B

None of these is what is predicted: no layer has the width of the tables' GPT, and neither tiny GPT
has its depth. All ranks measure at the same time, since cores share caches and memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import median

import numpy as np

from minidist import nn
from minidist.bench.calibration import Clock
from minidist.collectives import all_reduce
from minidist.collectives.calibrate import calibrate
from minidist.comm.comm import Comm
from minidist.comm.launcher import launch
from minidist.comm.local.world import LocalWorld
from minidist.comm.machine import Machine
from minidist.engine.array import defaults
from minidist.engine.tensor import Tensor, no_grad
from minidist.inference import Event, Request, run_on
from minidist.models import gpt

WIDTH, LAYERS = 256, 48  # of the linear layers: 12 MB of weights
MANY, FEW = 16, 1  # rows, for F and for B
TINY = [(layers, sequences) for layers in (2, 6) for sequences in (1, 8)]
NEW = 24  # tokens of each answer of a tiny GPT
FREE = Machine(
    latency=0.0, bandwidth=1e30, reduce_bandwidth=1e30, flops=1e30, memory_bandwidth=1e30
)


def machine_here(comm: Comm, turns: int = 10, clock: Clock = time.thread_time) -> Machine:
    """The machine for requests that all ranks of ``comm`` answer together.

    Every rank must call it; every rank gets the same machine.
    """
    flops, memory_bandwidth = (float(one) for one in mean(comm, rates(comm, turns, clock)))
    links = calibrate(comm, flops)
    found = replace(links, name="this machine", memory_bandwidth=memory_bandwidth)
    seconds = mean(comm, [median(each) for each in rounds(comm, turns, clock)]).tolist()
    per_launch, per_sequence = fitted(seconds, found)
    return replace(found, launch=per_launch, sequence=per_sequence)


def mean(comm: Comm, values: Sequence[float]) -> np.ndarray:
    """The mean over ranks of each value, the same on every rank."""
    found = np.array(values, float)
    all_reduce(comm, found)
    return found / comm.size


def rates(comm: Comm, turns: int, clock: Clock) -> tuple[float, float]:
    """F and B: FLOPs and bytes a second of linear layers in inference."""
    layers = [nn.Linear(WIDTH, WIDTH).init(seed).eval() for seed in range(LAYERS)]
    small = nn.Linear(8, 8).init(0).eval()
    inputs = {rows: Tensor(np.ones((1, rows, WIDTH), np.float32)) for rows in (MANY, FEW)}
    few_numbers = Tensor(np.ones((1, 1, 8), np.float32))
    numbers, few_of_them = np.ones((WIDTH, WIDTH), np.float32), np.ones(8, np.float32)
    times: dict[str | int, list[float]] = {one: [] for one in (MANY, FEW, 0, "scale", "none")}
    with no_grad():
        for _ in range(turns):
            comm.barrier()
            for rows, x in inputs.items():
                for layer in layers:  # each one's weights were last read 12 MB ago
                    times[rows].append(seconds_of(partial(layer, x), clock))
                    times[0].append(seconds_of(partial(small, few_numbers), clock))
            for array, what in ((numbers, "scale"), (few_of_them, "none")):
                call = partial(np.multiply, array, 1.0, out=array)
                times[what] += [seconds_of(call, clock) for _ in layers]
    many, few, python, scale, none = (median(each) for each in times.values())
    least = 1e-9  # a clock may be coarse
    return (
        2 * MANY * WIDTH**2 / max(many - python, least),
        (4 + 8) * WIDTH**2 / max(few - python + scale - none, least),
    )


def seconds_of(call: Callable[[], object], clock: Clock) -> float:
    start = clock()
    call()
    return clock() - start


def rounds(comm: Comm, turns: int, clock: Clock) -> list[list[float]]:
    """Seconds of the rounds of each tiny GPT, which takes turns with the others."""
    alone = comm.split(comm.rank)
    found: list[list[float]] = [[] for _ in TINY]
    for _ in range(max(1, turns // 3)):
        for times, (layers, sequences) in zip(found, TINY, strict=True):
            comm.barrier()
            times += gaps(alone, layers, sequences, clock)
    return found


def gaps(comm: Comm, layers: int, sequences: int, clock: Clock) -> list[float]:
    """Seconds from each token of a tiny GPT's first request to its next, by ``clock``."""
    model = gpt(11, 32, 16, layers, 4).init(0)
    asked = [Request((1, 2, 3), NEW, seed=number) for number in range(sequences)]
    times: list[float] = []

    def told(index: int, event: Event) -> None:
        if index == 0:
            times.append(clock())

    run_on(comm, model, asked, told=told, at_once=sequences)
    return np.diff(times).tolist()


def simulated_gap(layers: int, sequences: int, machine: Machine) -> float:
    """The median of ``gaps`` on this machine, on arrays without numbers."""

    def run(comm: Comm) -> float:
        with defaults(device="phantom"):
            return median(gaps(comm, layers, sequences, comm.time))

    return launch(run, 1, LocalWorld(machine))[0]


def fitted(seconds: Sequence[float], machine: Machine) -> tuple[float, float]:
    """launch and s that explain the ``seconds`` of the tiny GPTs' rounds best, given F and B.

    A round's time is linear in both: so each coefficient is the time on a machine where everything
    else is free.
    """
    units = replace(FREE, launch=1.0), replace(FREE, sequence=1.0)
    others = replace(machine, launch=0.0, sequence=0.0)
    table = np.array([[simulated_gap(*tiny, unit) for unit in units] for tiny in TINY])
    rest = np.array(seconds) - [simulated_gap(*tiny, others) for tiny in TINY]
    found = np.linalg.lstsq(table / rest[:, None], np.ones(len(TINY)), rcond=None)[0]
    per_launch, per_sequence = np.maximum(found, 0.0)  # no time is negative, whatever the noise
    return float(per_launch), float(per_sequence)
