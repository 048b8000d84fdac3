"""The synchronous parameter server: any number of servers, and what sharding costs."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from minidist import LocalWorld, Machine, launch
from minidist.collectives import ring
from minidist.comm.local.world import Deadlock
from minidist.data import Batches
from minidist.engine.array import defaults
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import LAMB, SGD, Adam
from minidist.parallel import METHODS, ParameterServer, Serial, simulate
from minidist.parallel.model_costs import parameter_slices
from minidist.parallel.server import key_ranges
from minidist.parallel.server.key_ranges import initial_values
from minidist.parallel.server.roles import roles
from tests.parallel.checks import Setting, check_equals_serial, check_predictions, make, train

KEYS = ["parameter_server/bsp", "parameter_server/bsp_sharded", "parameter_server/bsp_colocated"]
SLOW_NET = {"latency": 1e-5, "bandwidth": 1e8, "reduce_bandwidth": 3e8, "flops": 1e8}


def with_servers(monkeypatch, servers):
    """A row of METHODS with so many servers; "all" means colocated."""
    options = {"colocated": True} if servers == "all" else {"servers": servers}
    monkeypatch.setitem(METHODS, "servers", partial(ParameterServer, **options))
    return "servers"


def worker_server_bytes(comm, setting, key):
    """What this rank sent in one step, with its roles."""
    with defaults(dtype=setting.dtype):
        method = make(key, comm, setting)
        before = comm.trace.sent.messages, comm.trace.sent.nbytes
        method.step(Batches(setting.dataset, setting.batch, setting.seed)[0])
        sent = comm.trace.sent
    return sent.messages - before[0], sent.nbytes - before[1], method


@pytest.mark.parametrize(
    ("servers", "ranks"),
    [
        *(
            (servers, ranks)
            for servers in (1, 2, 3, 5)
            for ranks in (2, 5, 6, 7)
            if servers < ranks
        ),
        *(("all", ranks) for ranks in (1, 2, 3, 5, 6, 7)),
    ],
)
def test_any_number_of_servers_equals_serial_and_its_formula(servers, ranks, monkeypatch):
    key = with_servers(monkeypatch, servers)
    machine = Machine(**SLOW_NET, slowdown={ranks - 1: 4.0})  # the formula knows stragglers

    def checks(comm):
        check_equals_serial(comm, key, Setting(steps=3))
        check_predictions(comm, key, Setting(steps=2))

    launch(checks, ranks, LocalWorld(machine))


@pytest.mark.parametrize("servers", [1, 2, 3])
@pytest.mark.parametrize("workers", [3, 4])
def test_bytes_are_those_of_the_closed_form(workers, servers, monkeypatch):
    """n from a worker, nW/S from a server: every key has one owner, and none has two."""
    key = with_servers(monkeypatch, servers)
    setting = Setting(widths=(12, 9, 5))  # Ψ + 1 = 168: ranges are even
    results = launch(
        lambda comm: worker_server_bytes(comm, setting, key)[:2], servers + workers, LocalWorld()
    )
    n = 168 * 8
    last = servers - 1
    expected = [
        (workers + last * (rank == last), n * workers // servers + 8 * last * (rank == last))
        if rank < servers
        else (servers, n)
        for rank in range(servers + workers)
    ]
    assert results == expected


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_colocated_servers_send_what_a_ring_sends_and_take_its_time(ranks):
    setting = Setting(widths=(12, 9, 5))
    machine = Machine(**SLOW_NET)

    def run(comm):
        *sent, method = worker_server_bytes(comm, setting, "parameter_server/bsp_colocated")
        batch = Batches(setting.dataset, 12, 0)[0]
        cost = method.cost(batch, machine)
        compute = max(cost.busy) - machine.reduce(168 // ranks * 8) * (ranks - 1)
        return *sent, cost.seconds - compute

    wire = ring.all_reduce_cost(168, 8, 0, ranks, machine)
    for messages, nbytes, seconds in launch(run, ranks, LocalWorld(machine)):
        assert (messages, nbytes) == (wire.messages, wire.nbytes)
        assert seconds == pytest.approx(wire.seconds, rel=1e-9)


def test_one_server_is_a_bottleneck_and_more_servers_are_not():
    """Time on the wire: 2W for one server, 2W/S for S of them."""

    def seconds(servers, workers):
        machine = Machine(latency=0.0, bandwidth=1e6, reduce_bandwidth=1e15, flops=1e15)

        def make(comm):
            return ParameterServer(mlp((12, 9, 5)), CrossEntropy(), SGD(0.1), comm, 0, servers)

        batches = Batches(Setting().dataset, 12, 0)
        return simulate(make, batches, servers + workers, machine).step_seconds

    one = seconds(1, 2)
    assert seconds(1, 8) == pytest.approx(4 * one, rel=1e-6)
    assert seconds(4, 8) == pytest.approx(one, rel=0.02)  # 2 workers a server, and the loss


@pytest.mark.parametrize("key", KEYS)
def test_optimizer_state_lives_on_servers_alone(key):
    def run(comm):
        method = make(key, comm, Setting(steps=2, optimizer=lambda: Adam(1e-2)))
        train(method, Setting(steps=2))
        return method.optimizer.state_bytes()

    held = launch(run, 4, LocalWorld())
    psi, slots, e = 270, 2, 4
    expected = {
        "parameter_server/bsp": [psi, 0, 0, 0],
        "parameter_server/bsp_sharded": [136, 134, 0, 0],
        "parameter_server/bsp_colocated": [68, 68, 68, 66],
    }[key]
    assert held == [count * slots * e for count in expected]


@pytest.mark.parametrize("key", KEYS)
def test_workers_hold_exactly_what_the_servers_hold(key):
    def run(comm):
        method = make(key, comm, Setting())
        train(method, Setting())
        own = method.model.state() if method.works else None
        return own, method.parameters()

    for own, servers in launch(run, 4, LocalWorld()):
        for name in own or ():
            assert np.array_equal(own[name], servers[name]), name


@pytest.mark.parametrize("key", KEYS)
def test_layerwise_rules_get_norms_of_parameters_that_lie_on_two_servers(key):
    def run(comm):
        setting = Setting(optimizer=lambda: LAMB(0.01))
        with defaults(dtype="float64"):
            losses, states = train(make(key, comm, setting), setting)
            optimizer = LAMB(0.01)
            optimizer.bind(parameter_slices(mlp(setting.widths)))
            alone = comm.split(comm.rank)
            serial = Serial(mlp(setting.widths), CrossEntropy(), optimizer, alone, setting.seed)
            expected_losses, expected = train(serial, setting)
        np.testing.assert_allclose(losses, expected_losses, rtol=1e-12)
        for name in expected[-1]:
            np.testing.assert_allclose(states[-1][name], expected[-1][name], atol=1e-12)

    launch(run, 4, LocalWorld())


def test_a_server_initialises_its_keys_alone():
    whole = mlp((12, 9, 5)).init(3).flat.data
    for keys in (slice(0, 1), slice(5, 120), slice(107, 108), slice(120, 167), slice(9, 9)):
        assert np.array_equal(initial_values(mlp((12, 9, 5)), 3, keys), whole[keys]), keys


def test_roles():
    assert roles(1, 1, colocated=False) == ([0], [0])
    assert roles(3, 2, colocated=False) == ([0, 1], [2])
    assert roles(4, lambda ranks: ranks // 2, colocated=False) == ([0, 1], [2, 3])
    assert roles(7, 3, colocated=False) == ([0, 1, 2], [3, 4, 5, 6])
    assert roles(3, 1, colocated=True) == ([0, 1, 2], [0, 1, 2])
    with pytest.raises(ValueError, match="at least one server, not 0"):
        roles(3, 0, colocated=False)
    for size, servers in ((1, 2), (2, 2), (4, 4), (4, 9)):
        text = f"{servers} servers and at least one worker need {servers + 1} ranks, and there are "
        with pytest.raises(ValueError, match=text + str(size)):
            roles(size, servers, colocated=False)


# Mutants


def workers_step_too(monkeypatch):
    step = ParameterServer.step

    def eager(self, batch):
        loss = step(self, batch)
        if not self.serves:
            self.update()
        return loss

    monkeypatch.setattr(ParameterServer, "step", eager)


def server_forgets_a_worker(monkeypatch):
    init = ParameterServer.__init__

    def forgetful(self, *args, **options):
        init(self, *args, **options)
        self.comm.combine = lambda op, into, other: None

    monkeypatch.setattr(ParameterServer, "__init__", forgetful)


def server_answers_before_it_steps(monkeypatch):
    update = ParameterServer.update_keys

    def late(self):
        old = self.data.copy()
        update(self)
        self.data, self.newer = old, self.data

    monkeypatch.setattr(ParameterServer, "update_keys", late)


def push_applied_twice(monkeypatch):
    init = ParameterServer.__init__

    def twice(self, *args, **options):
        init(self, *args, **options)
        combine = self.comm.combine

        def again(op, into, other):
            combine(op, into, other)
            into += other

        self.comm.combine = again

    monkeypatch.setattr(ParameterServer, "__init__", twice)


def boundary_overlaps_by_one_element(monkeypatch):
    """Both servers own an element: the numbers stay right, and a worker sends too much."""

    def overlapping(length, size):
        parts = ring.chunks(length, size)
        return [slice(parts[0].start, parts[0].stop + 1), *parts[1:]]

    monkeypatch.setattr(key_ranges, "chunks", overlapping)


def boundary_leaves_an_element_out(monkeypatch):
    def short(length, size):
        parts = ring.chunks(length, size)
        return [slice(parts[0].start, parts[0].stop - 1), *parts[1:]]

    monkeypatch.setattr(key_ranges, "chunks", short)


def servers_share_the_first_range(monkeypatch):
    def same(model, seed, keys, initial=initial_values):
        return initial(model, seed, slice(0, keys.stop - keys.start))

    monkeypatch.setattr(key_ranges, "initial_values", same)


@pytest.mark.parametrize(
    "mutant",
    [
        workers_step_too,
        server_forgets_a_worker,
        server_answers_before_it_steps,
        push_applied_twice,
        boundary_overlaps_by_one_element,
        boundary_leaves_an_element_out,
        servers_share_the_first_range,
    ],
    ids=lambda mutant: mutant.__name__,
)
def test_mutant_is_rejected(mutant, monkeypatch):
    mutant(monkeypatch)
    key = "parameter_server/bsp_sharded"

    def checks(comm):
        check_equals_serial(comm, key, Setting())
        check_predictions(comm, key, Setting())
        _, nbytes, method = worker_server_bytes(comm, Setting(), key)
        n = (method.psi + 1) * method.itemsize
        assert method.serves or nbytes == n, f"a worker sent {nbytes} bytes, formula {n}"

    with pytest.raises((AssertionError, Deadlock, ValueError)) as rejection:
        launch(checks, 4, LocalWorld())
    print(f"{mutant.__name__}: {rejection.value}")
