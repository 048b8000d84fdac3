"""What a machine charges for kernels, and for messages on two levels, counted by hand."""

from dataclasses import replace

import numpy as np
import pytest

from minidist import LocalWorld, launch
from minidist.comm.machine import PROFILES, Link, Machine
from minidist.engine import phantom
from minidist.engine.array import defaults, work
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import Adam
from minidist.parallel import DataParallel

MACHINE = Machine(
    "round", latency=1.0, bandwidth=8.0, reduce_bandwidth=4.0, flops=100.0, memory_bandwidth=16.0,
    launch=3.0,
)  # fmt: skip


def run(function, ranks=1, machine=MACHINE):
    return launch(function, ranks, LocalWorld(machine))


def test_a_kernel_costs_a_launch_and_the_slower_of_memory_and_arithmetic():
    def program(comm):
        x = phantom.empty(8, "float64")
        times = [comm.time()]
        x += x  # 3 arrays of 64 bytes
        times.append(comm.time())
        a = phantom.empty((10, 10), "float64")
        work.flops += 2000  # as the op counts them
        phantom.matmul(a, a)  # 2400 bytes take 150 s, 2000 FLOPs 20 s
        times.append(comm.time())
        b = phantom.empty((100, 100), "float64")
        work.flops += 2 * 10**6
        phantom.matmul(b, b)  # 240,000 bytes take 15,000 s, 2 million FLOPs 20,000 s
        times.append(comm.time())
        return np.diff(times).tolist()

    expected = [3 + 192 / 16, 3 + 150, 3 + 20_000]
    assert run(program) == [pytest.approx(expected)]
    slow = replace(MACHINE, slowdown={0: 2.0})
    assert run(program, machine=slow) == [pytest.approx([2 * one for one in expected])]


def test_prices_end_with_the_world():
    before = work.prices()
    with pytest.raises(ZeroDivisionError):
        run(lambda comm: 1 / 0)
    assert work.prices() == before


def test_messages_and_reductions_have_prices_of_their_own():
    """The copy into the receiver's buffer is no kernel, and the addition is charged once, γ."""

    def program(comm):
        mine, other = phantom.empty(4, "float64"), phantom.empty(4, "float64")
        comm.sendrecv(mine, 1 - comm.rank, other, 1 - comm.rank)
        between = comm.time()
        comm.combine("sum", mine, other)
        return between, comm.time() - between

    assert run(program, 2) == [pytest.approx((1 + 32 / 8, 32 / 4))] * 2


def test_what_others_compute_is_charged_to_them():
    def program(comm):
        x = phantom.empty(8, "float64")
        for _ in range(1 + comm.rank):
            x += x
        comm.barrier()
        return comm.trace.busy

    one = 3 + 192 / 16
    assert run(program, 3) == pytest.approx([one, 2 * one, 3 * one])


def test_a_rank_has_a_port_in_its_node_and_one_between_nodes():
    """Rank 0 sends 32 bytes to its neighbour and 32 to another node: at the same time."""
    network = Link(latency=2.0, bandwidth=4.0)

    def program(comm):
        buffer = np.zeros(4)
        if comm.rank == 0:
            for request in [comm.isend(buffer, to) for to in (1, 2)]:
                request.wait()
        elif comm.rank < 3:
            comm.recv(buffer, 0)
        return comm.time()

    two_levels = replace(MACHINE, node=2, network=network)
    assert run(program, 4, two_levels)[:3] == [10.0, 5.0, 10.0]
    assert run(program, 4)[:3] == [10.0, 5.0, 10.0]  # one port: one after the other, 5 s each
    assert run(program, 4, replace(two_levels, node=1))[:3] == [20.0, 10.0, 20.0]


@pytest.mark.parametrize(
    "wrong", [{"launch": -1e-6}, {"memory_bandwidth": 0.0}, {"memory_bandwidth": float("nan")}]
)
def test_prices_that_cannot_be(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Machine(**wrong)


def test_optimizers_and_layers_without_products_are_no_longer_free():
    def step(machine):
        def program(comm):
            with defaults(device="phantom"):
                method = DataParallel(mlp((64, 32, 10)), CrossEntropy(), Adam(), comm)
                before, start = work.kernels, comm.time()
                x = phantom.empty((8, 64), "float32")
                method.model.zero_grad()
                method.loss(method.model(x), phantom.empty(8, "int64")).backward()
                method.update()
                return comm.time() - start, work.kernels - before

        return run(program, 1, machine)[0]

    free, kernels = step(replace(MACHINE, launch=0.0, memory_bandwidth=float("inf")))
    launched, _ = step(replace(MACHINE, memory_bandwidth=float("inf")))
    assert launched - free == pytest.approx(3 * kernels)


def test_profiles_of_gpus_price_kernels():
    for name in ("a100", "h100"):
        machine = PROFILES[name]
        assert machine.launch > 0
        assert machine.flops / machine.memory_bandwidth > 50  # the ridge of the roofline
