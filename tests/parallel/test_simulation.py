"""The time of a step is predicted by its own source on shapes; papers' formulas say the same."""

from dataclasses import replace

import numpy as np
import pytest
from pairs import pairs

from minidist import LocalWorld, launch
from minidist.collectives import ring
from minidist.comm.machine import Link, Machine, profile
from minidist.data import Batches, Dataset
from minidist.engine import phantom
from minidist.engine.array import defaults
from minidist.models import mlp
from minidist.nn import CrossEntropy, LayerNorm, Linear, Sequential
from minidist.optim import SGD
from minidist.parallel import METHODS, DataParallel, Pipeline, simulate
from minidist.parallel.model_costs import training_flops

MACHINES = {
    "two levels": Machine(node=2, network=Link(3e-5, 1e8)),
    "a straggler": Machine(slowdown={1: 3.0}),
    "a slow link": Machine(links={(0, 1): Link(1e-3, 1e7)}),
    "jitter": Machine(jitter=0.3, seed=4),
}
random = np.random.default_rng(1)
DATA = Dataset("few", random.standard_normal((60, 12)), random.integers(0, 5, 60), 5)


def make(key):
    return lambda comm: METHODS[key](
        mlp((12, 9, 7, 6, 5)), CrossEntropy(), SGD(0.1, momentum=0.9), comm, 0
    )


@pytest.mark.parametrize(
    ("machine", "key"), pairs(MACHINES, [key for key in METHODS if key != "serial"])
)
def test_time_is_known_for_every_method_on_every_machine(key, machine):
    """Also where it depends on who comes first, and on links and ranks that differ."""
    machine, batches = MACHINES[machine], Batches(DATA, 13)
    found = simulate(make(key), batches, 4, machine, steps=3)

    def run(comm):
        method, steps = make(key)(comm), []
        for number in range(3):
            comm.barrier()
            start, busy, sent = comm.time(), comm.trace.busy, comm.trace.sent.nbytes
            method.step(batches[number])
            end = comm.time()
            comm.trace.computed(end)
            steps.append((end - start, comm.trace.busy - busy, comm.trace.sent.nbytes - sent))
        return steps

    expected = np.array(launch(run, 4, LocalWorld(machine)))  # (rank, step, number)
    np.testing.assert_allclose(found.seconds, expected[:, :, 0].max(axis=0), rtol=1e-9)
    np.testing.assert_allclose(found.busy, expected[:, :, 1].T, rtol=1e-9, atol=1e-15)
    assert found.nbytes == expected[:, -1, 2].tolist()
    assert 0 <= found.idle_fraction < 1


@pytest.mark.parametrize("ranks", [2, 4])
def test_data_parallel_takes_its_closed_formula(ranks):
    """T = FLOPs / speed + T_ring, for a batch and a gradient that all ranks divide evenly."""
    machine, widths = Machine(), (64, 63, 64)
    inputs = phantom.empty((8 * ranks, 64), "float32")
    dataset = Dataset("shapes", inputs, phantom.empty(8 * ranks, "int64"), 64)

    def method(comm):
        return DataParallel(mlp(widths), CrossEntropy(), SGD(0.1), comm)

    found = simulate(method, Batches(dataset, 8 * ranks), ranks, machine)
    compute = sum(training_flops(mlp(widths), (8, 64))) / machine.flops
    summed = ring.all_reduce.cost(8192, 4, 0, ranks, machine)
    assert found.step_seconds == pytest.approx(compute + summed.seconds, rel=1e-12)
    folded = simulate(method, Batches(dataset, 8 * ranks), ranks, machine, fold={"dp": ranks})
    assert folded.step_seconds == pytest.approx(found.step_seconds, rel=1e-12)


ADD_UP = {  # the rows whose time has a formula where shards and ranges are even: see series.py
    "serial",
    "data_parallel/per_parameter",
    "data_parallel/ring",
    "data_parallel/symmetric",
    "parameter_server/bsp",
    "parameter_server/bsp_sharded",
    "parameter_server/bsp_colocated",
    *(f"compression/{kind}" for kind in ("bfloat16", "top_k", "random_k", "sign", "qsgd")),
    "local_sgd/average",
    "local_sgd/diloco",
    "gossip/ring",
    "gossip/exponential",
    "easgd/sync",
}


@pytest.mark.parametrize("key", METHODS)
def test_formulas_of_time_are_the_simulated_time(key):
    """On even shards and ranges; the other rows' ``cost`` says that it does not know."""
    servers = {"parameter_server/bsp": 1, "parameter_server/bsp_sharded": 2, "easgd/sync": 1}
    ranks = 1 if key == "serial" else 4 + servers.get(key, 0)
    widths = (64, 64, 64) if key == "data_parallel/per_parameter" else (64, 63, 64)
    inputs = phantom.empty((48, 64), "float32")
    batches = Batches(Dataset("shapes", inputs, phantom.empty(48, "int64"), 64), 48)
    machine = Machine(latency=1e-4, bandwidth=1e8, reduce_bandwidth=1e9, flops=1e9)

    def run(comm):
        steps = []
        with defaults(device="phantom"):
            method = METHODS[key](mlp(widths), CrossEntropy(), SGD(0.1, momentum=0.9), comm)
            for number in range(9):
                comm.barrier()
                start, formula = comm.time(), method.cost(batches[number], machine).seconds
                method.step(batches[number])
                steps.append((comm.time() - start, formula))
        return steps

    by_step = list(zip(*launch(run, ranks, LocalWorld(machine)), strict=True))
    formulas = [step[0][1] for step in by_step]
    simulated = [max(seconds for seconds, _ in step) for step in by_step]
    known = [i for i, formula in enumerate(formulas) if formula is not None]
    assert (len(known) > 7) == (key in ADD_UP), formulas
    for i in known:
        assert formulas[i] == pytest.approx(simulated[i], rel=1e-9)


@pytest.mark.parametrize(("stages", "microbatches"), [(2, 4), (4, 4), (4, 8)])
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_a_pipelines_bubble_is_that_of_the_paper(schedule, stages, microbatches):
    """(p - 1) / (m + p - 1) of the time, with equal stages and messages that take none.

    GPipe, arXiv 1811.06965, section 2; Megatron-LM, arXiv 2104.04473, section 2.2. Each stage
    begins with a norm, so that the first one too computes a gradient of its product's input.
    """
    machine = Machine(latency=0.0, bandwidth=float("inf"), reduce_bandwidth=float("inf"))
    inputs = phantom.empty((microbatches, 64), "float32")
    dataset = Dataset("shapes", inputs, phantom.empty(microbatches, "int64"), 64)

    def method(comm):
        blocks = [block for _ in range(stages) for block in (LayerNorm(64), Linear(64, 64))]
        return Pipeline(
            Sequential(*blocks, input_shape=(64,)),
            CrossEntropy(),
            SGD(0.1),
            comm,
            schedule=schedule,
            microbatches=microbatches,
            bounds=[(2 * stage, 2 * stage + 2) for stage in range(stages)],
        )

    found = simulate(method, Batches(dataset, microbatches), stages, machine)
    bubble = (stages - 1) / (microbatches + stages - 1)
    assert found.idle_fraction == pytest.approx(bubble, rel=1e-12)


def test_a_machine_that_launches_kernels_takes_longer_and_steps_can_be_drawn():
    batches = Batches(DATA, 12)
    free = simulate(make("zero/1"), batches, 2, Machine(), record=True)
    launched = simulate(make("zero/1"), batches, 2, replace(Machine(), launch=1e-5))
    assert launched.step_seconds > free.step_seconds + 20e-5
    assert any(event.name.startswith("backward") for event in free.traces[0].events)
    assert simulate(make("zero/1"), batches, 2, profile("h100")).step_seconds > 1e-4
