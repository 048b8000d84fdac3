"""Stale and asynchronous parameter servers: bounds, exact limits, and what was really applied."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minidist import LocalWorld, Machine, launch
from minidist.collectives import ring
from minidist.comm import Deadlock, Pauses
from minidist.compare import compare
from minidist.data import Batches, fashion_mnist
from minidist.engine.array import defaults
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import SGD, Adam
from minidist.parallel import METHODS, LookAhead, ParameterServer, StaleParameterServer
from minidist.parallel.model_costs import parameter_slices
from minidist.parallel.server import key_ranges
from tests.examples import examples
from tests.parallel.checks import Setting, check_equals_serial, check_predictions, make, train

SLOW_NET = {"latency": 1e-5, "bandwidth": 1e8, "reduce_bandwidth": 3e8, "flops": 1e8}


class Logged(StaleParameterServer):
    """Workers note when they begin a clock: (time, worker, clock)."""

    begun: list

    def forward_backward(self, batch):
        self.begun.append((self.comm.time(), self.comm.rank, batch.step))
        return super().forward_backward(batch)


def where(servers):
    """Options for so many servers; "all" means colocated."""
    return {"colocated": True} if servers == "all" else {"servers": servers}


LAYOUTS = [
    *(
        (servers, ranks)
        for servers in (1, 2, 3)
        for ranks in (1, 2, 3, 4, 5, 7)
        if servers < max(ranks, 2)
    ),
    *(("all", ranks) for ranks in (1, 2, 3, 4, 5, 7)),
]


def free_run(comm, kind=StaleParameterServer, setting=None, **options):
    """A method that has run freely over the setting's batches, and its losses."""
    setting = setting or Setting()
    method = kind(
        mlp(setting.widths), CrossEntropy(), setting.optimizer(), comm, setting.seed, **options
    )
    method.begun = []
    batches = Batches(setting.dataset, setting.batch, setting.seed)
    losses = method.train([batches[step] for step in range(setting.steps)])
    return method, losses


# Exact limits


@pytest.mark.parametrize(("servers", "ranks"), LAYOUTS)
def test_no_staleness_equals_serial(ranks, servers, monkeypatch):
    """An update for each push, all of the same parameters: with plain SGD, the same sum."""
    kind = partial(StaleParameterServer, staleness=0, **where(servers))
    monkeypatch.setitem(METHODS, "s=0", kind)
    setting = Setting(optimizer=lambda: SGD(0.1))
    launch(lambda comm: check_equals_serial(comm, "s=0", setting), ranks, LocalWorld())


@pytest.mark.parametrize("optimizer", [lambda: SGD(0.1, momentum=0.9), lambda: Adam(1e-2)])
@pytest.mark.parametrize("ranks", [1, 2])
def test_one_asynchronous_worker_equals_serial(ranks, optimizer):
    setting = Setting(optimizer=optimizer)
    key = "parameter_server/async"
    launch(lambda comm: check_equals_serial(comm, key, setting), ranks, LocalWorld())


# The bound


def check_bound(begun, updates, bound, workers):
    """Whoever begins clock c does so after *everyone's* push of clock c - bound - 1 is applied."""
    applied = {(update.worker, update.clock): update.time for update in updates}
    for time, worker, clock in begun:
        needed = clock - bound - 1
        if needed >= 0:
            for other in workers:
                assert applied[other, needed] <= time, (
                    f"worker {worker} began clock {clock} at {time}, when worker {other} had "
                    f"not pushed clock {needed}: bound {bound}"
                )


@examples(25)
@given(
    seed=st.integers(0, 2**32 - 1),
    bound=st.integers(0, 3),
    workers=st.integers(2, 5),
    servers=st.sampled_from([1, 2, 3, "all"]),
)
def test_bound_holds_in_random_schedules(seed, bound, workers, servers):
    setting = Setting(widths=(12, 5), batch=10, steps=8)
    machine = Machine(**SLOW_NET, pauses=Pauses(every=2e-5, length=1e-4), seed=seed)

    def run(comm):
        method, _ = free_run(comm, Logged, setting, staleness=bound, **where(servers))
        return method.begun, method.updates, method.servers, method.workers

    ranks = workers if servers == "all" else servers + workers
    results = launch(run, ranks, LocalWorld(machine))
    begun = [entry for entries, *_ in results for entry in entries]
    assert len(begun) == workers * setting.steps
    for server in results[0][2]:
        check_bound(begun, results[server][1], bound, results[0][3])


@pytest.mark.parametrize("servers", [1, 2, "all"])
@pytest.mark.parametrize(("bound", "furthest"), [(0, 0), (1, 1), (2, 2), (3, 3), (None, 6)])
def test_the_fast_go_as_far_ahead_as_the_bound_allows(bound, furthest, servers):
    """One of three workers takes 50 times as long: the bound is reached, not only kept."""
    ranks = 3 if servers == "all" else 3 + servers
    machine = Machine(flops=1e8, slowdown={ranks - 1: 50.0})

    def run(comm):
        method, _ = free_run(comm, setting=Setting(steps=7), staleness=bound, **where(servers))
        return [update.lead for update in method.updates]

    leads = [max(found) for found in launch(run, ranks, LocalWorld(machine)) if found]
    assert leads == [furthest] * len(leads) and leads


def test_asynchronous_workers_never_wait_for_a_straggler():
    """The fast finish when they would without it; under BSP they wait at every step."""
    setting = Setting(steps=7)

    def bulk(comm):
        train(make("parameter_server/bsp", comm, setting), setting)
        return comm.time()

    def free(comm):
        method, _ = free_run(comm, setting=setting)
        return max((update.time for update in method.updates if update.worker != 3), default=0.0)

    def seconds(run, slowdown):
        machine = Machine(latency=0.0, bandwidth=1e12, flops=1e8, slowdown=slowdown)
        return launch(run, 4, LocalWorld(machine))[0]

    assert seconds(free, {3: 4.0}) == pytest.approx(seconds(free, {}), rel=0.01)
    assert seconds(bulk, {3: 4.0}) > 3 * seconds(bulk, {})


# What was applied


def replay(records, keys, workers, setting, staleness_aware=False, ahead=0):
    """The oracle of stale training: every update's gradient, at the versions it was computed on.

    ``records``: each server's updates; ``keys``: its range. A worker had, of each server's range,
    the version that lay as many updates before that server applied its push as the record says,
    or what that and the one before it let expect ``ahead`` updates later.
    """
    model, loss = mlp(setting.widths).init(setting.seed), CrossEntropy()
    batches = Batches(setting.dataset, setting.batch, setting.seed)
    optimizers = [setting.optimizer() for _ in records]
    versions = [[model.flat.data[part].copy()] for part in keys]
    based_on = [  # by server: (worker, clock) → version
        {(u.worker, u.clock): index - u.staleness for index, u in enumerate(updates)}
        for updates in records
    ]
    gradients = {}

    def gradient(push):
        if push not in gradients:
            worker, clock = push
            for part, mine, known in zip(keys, based_on, versions, strict=True):
                version = known[mine[push]]  # IndexError: not there yet
                before = known[max(mine[push] - 1, 0)]
                model.flat.data[part] = version + ahead * (version - before)
            model.zero_grad()
            shard = batches[clock].shard(workers.index(worker), len(workers))
            loss(model(shard.inputs), shard.targets, shard.count(loss)).backward()
            gradients[push] = model.flat.grad.copy()
        return gradients[push]

    while any(len(known) <= len(updates) for known, updates in zip(versions, records, strict=True)):
        moved = False
        for part, known, updates, optimizer in zip(
            keys, versions, records, optimizers, strict=True
        ):
            while len(known) <= len(updates):
                update = updates[len(known) - 1]
                try:
                    grad = gradient((update.worker, update.clock))[part].copy()
                except IndexError:  # it was computed on what another server has yet to do
                    break
                if staleness_aware and update.staleness > 1:
                    grad /= update.staleness
                known.append(known[-1].copy())
                optimizer.step(known[-1], grad)
                moved = True
        assert moved, "the record says that a gradient was computed on parameters of the future"
    for part, known in zip(keys, versions, strict=True):
        model.flat.data[part] = known[-1]
    return model.state()


@pytest.mark.parametrize("aware", [False, True])
@pytest.mark.parametrize("bound", [1, None])
@pytest.mark.parametrize("servers", [1, 2, 3, "all"])
@pytest.mark.parametrize(("kind", "ahead"), [(StaleParameterServer, 0), (LookAhead, 2)])
def test_parameters_are_those_of_the_recorded_updates(servers, bound, aware, kind, ahead):
    """Replayed from the records alone: so the recorded staleness is the true one."""
    setting = Setting(dtype="float64")
    machine = Machine(**SLOW_NET, pauses=Pauses(every=1e-4, length=3e-4))

    def run(comm):
        with defaults(dtype="float64"):
            options = {"staleness": bound, "staleness_aware": aware, **where(servers)}
            method, _ = free_run(comm, kind, setting, **options)
            return method.updates, method.parameters(), method

    ranks = 3 if servers == "all" else servers + 3
    results = launch(run, ranks, LocalWorld(machine))
    method, got = results[0][2], results[0][1]
    records = [results[server][0] for server in method.servers]
    for updates in records:
        assert len(updates) == 3 * setting.steps
        assert len({update.staleness for update in updates}) > 1, "a schedule without staleness"
    if servers in (2, 3):
        orders = {tuple((u.worker, u.clock) for u in updates) for updates in records}
        assert len(orders) > 1, "a schedule that all servers see in one order"
    with defaults(dtype="float64"):
        expected = replay(records, method.keys, method.workers, setting, aware, ahead)
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-12, atol=1e-14)
    for _, others, _ in results:
        assert all(np.array_equal(others[name], got[name]) for name in got)


@pytest.mark.parametrize("workers", [2, 3, 6])
def test_staleness_among_equals_is_one_less_than_the_workers(workers):
    def run(comm):
        method, _ = free_run(comm, setting=Setting(batch=12, steps=30))
        return [update.staleness for update in method.updates]

    found = launch(run, workers + 1, LocalWorld())[0]
    assert np.mean(found) == pytest.approx(workers - 1, abs=0.1)


class Stutter(StaleParameterServer):
    """Every third push is sent again, as after a lost acknowledgement."""

    def push(self, server, message):
        super().push(server, message)
        if message[0][0] % 3 == 1:
            super().push(server, message)


class Late(StaleParameterServer):
    """Before a push, the one before it comes once more."""

    def push(self, server, message):
        header, *gradient = message
        if header[0]:
            super().push(server, [header - [1, 0], *gradient])
        super().push(server, message)


@pytest.mark.parametrize(("kind", "times"), [(Stutter, 2), (Late, 5)])
def test_a_push_that_comes_twice_is_applied_once(kind, times):
    setting = Setting(dtype="float64")

    def run(comm, kind):
        with defaults(dtype="float64"):
            method, losses = free_run(comm, kind, setting)
            return method.parameters(), losses, method.repeated

    once = launch(lambda comm: run(comm, StaleParameterServer), 2, LocalWorld())[0]
    twice = launch(lambda comm: run(comm, kind), 2, LocalWorld())[0]
    assert (once[2], twice[2]) == (0, times)
    assert once[1] == twice[1]
    for name in once[0]:
        assert np.array_equal(once[0][name], twice[0][name]), name


# Costs


@pytest.mark.parametrize(("servers", "ranks"), LAYOUTS)
@pytest.mark.parametrize("bound", [1, None])
def test_bytes_and_memory_equal_the_formula(ranks, servers, bound, monkeypatch):
    kind = partial(StaleParameterServer, staleness=bound, **where(servers))
    monkeypatch.setitem(METHODS, "stale", kind)
    launch(lambda comm: check_predictions(comm, "stale", Setting(steps=2)), ranks, LocalWorld())


def test_bytes_of_a_free_run_are_those_of_the_closed_form():
    setting = Setting(widths=(12, 9, 5), dtype="float32", steps=6)  # Ψ = 167
    workers, servers, batches = 3, 2, setting.steps

    def run(comm):
        free_run(comm, setting=setting, servers=servers)
        return comm.trace.sent.messages, comm.trace.sent.nbytes

    ranges = [84 * 4, 83 * 4]
    losses = servers + workers - 1
    assert launch(run, servers + workers, LocalWorld()) == [
        (batches * workers + losses, batches * workers * ranges[0] + losses * 8 * batches),
        (batches * workers, batches * workers * ranges[1]),
        *[(batches * 2 * servers, batches * (16 * servers + 167 * 4))] * workers,
    ]


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_colocated_servers_send_what_a_ring_sends_and_headers(ranks):
    """16 bytes of header for each push; to the server beside it a worker sends nothing else."""
    setting = Setting(widths=(12, 9, 5), steps=6)  # of 167 keys, so one short of even ranges

    def run(comm):
        with defaults(dtype="float32"):
            free_run(comm, setting=setting, colocated=True)
        return comm.trace.sent.messages, comm.trace.sent.nbytes

    tell = (ranks - 1, (ranks - 1) * 8 * setting.steps)  # rank 0 tells the losses
    for rank, (messages, nbytes) in enumerate(launch(run, ranks, LocalWorld())):
        own = ring.chunks(167, ranks)[rank]
        keys = own.stop - own.start
        push, pull = (167 - keys) * 4, (ranks - 1) * keys * 4
        assert messages - tell[0] * (rank == 0) == setting.steps * (2 * (ranks - 1) + 1 + ranks)
        sent = nbytes - tell[1] * (rank == 0)
        assert sent == setting.steps * (push + pull + 16 * ranks)
        even = 2 * 168 * 4 * (ranks - 1) / ranks
        assert abs(push + pull - even) <= 4 * ranks, "a ring of the same size"


@pytest.mark.parametrize("optimizer", [lambda: SGD(0.1, momentum=0.9), lambda: Adam(1e-2)])
@pytest.mark.parametrize(
    ("variant", "keys"),
    [("", [270, 0, 0, 0]), ("_sharded", [135, 135, 0, 0]), ("_colocated", [68, 68, 67, 67])],
)
@pytest.mark.parametrize("rule", ["ssp", "async"])
def test_optimizer_state_lives_on_servers_alone(rule, variant, keys, optimizer):
    def run(comm):
        method = make(f"parameter_server/{rule}{variant}", comm, Setting(optimizer=optimizer))
        train(method, Setting(steps=2))
        return method.optimizer.state_bytes()

    slots = len(optimizer().slots)
    assert launch(run, 4, LocalWorld()) == [slots * 4 * owned for owned in keys]


TROUBLES = {
    "one worker 4 times as slow": {"slowdown": {4: 4.0}},
    "random pauses": {"pauses": Pauses(every=0.005, length=0.02), "seed": 1},
}
RULES = {
    "bsp": ParameterServer,
    "ssp": partial(StaleParameterServer, staleness=3),
    "async": StaleParameterServer,
}


def seconds_to_reach(rule, machine, target, steps=120):
    """Virtual time at which the mean loss of a server's last 8 shards, or 2 steps, is below it."""
    training, _ = fashion_mnist()

    def run(comm):
        method = RULES[rule](mlp((784, 32, 10)), CrossEntropy(), SGD(0.1), comm, 0)
        heard, take = [], getattr(method, "receive_push", None)
        batches = Batches(training, 64, 0)
        parts = [batches[step] for step in range(steps)]
        if rule == "bsp":
            for part in parts:
                heard.append((method.step(part), comm.time()))
            return [
                (np.mean([h[0] for h in heard[i - 2 : i]]), heard[i - 1][1])
                for i in range(2, steps)
            ]

        def noted():
            before = method.losses.sum()
            take()
            heard.append((4 * (method.losses.sum() - before), comm.time()))

        method.receive_push = noted
        method.train(parts)
        return [
            (np.mean([h[0] for h in heard[i - 8 : i]]), heard[i - 1][1])
            for i in range(8, len(heard))
        ]

    curve = launch(run, 5, LocalWorld(machine))[0]
    return next(time for loss, time in curve if loss < target)


@pytest.mark.parametrize("trouble", TROUBLES)
def test_time_to_a_loss_is_in_the_order_of_the_ssp_paper(trouble):
    """BSP slowest, asynchronous fastest; SSP absorbs pauses, and waits for the always slow."""
    machine = Machine(flops=1e9, **TROUBLES[trouble])
    bsp, ssp, free = (seconds_to_reach(rule, machine, 0.8) for rule in RULES)
    print(f"{trouble}: BSP {bsp:.3f} s, SSP {ssp:.3f} s, async {free:.3f} s")
    assert bsp > 1.1 * ssp > 1.2 * free
    assert bsp > 2 * free
    saved = (bsp - ssp) / (bsp - free)
    assert (saved < 0.4) if "slowdown" in TROUBLES[trouble] else (saved > 0.4), saved


@pytest.mark.parametrize("options", [{"staleness": 2}, {}, {"staleness_aware": True}])
def test_convergence_on_fashion_mnist(options):
    """Plain SGD, 4 workers, one of them 4 times slower: the loss comes within 15 % of BSP's."""
    training, _ = fashion_mnist()

    def run(comm, kind, **options):
        model = mlp((784, 32, 10))
        method = kind(model, CrossEntropy(), SGD(0.1), comm, 0, **options)
        batches = Batches(training, 64, 0)
        parts = [batches[step] for step in range(120)]
        free = kind is StaleParameterServer
        losses = method.train(parts) if free else [method.step(part) for part in parts]
        return np.mean(losses[-20:])

    world = LocalWorld(Machine(slowdown={4: 4.0}))
    got = launch(lambda comm: run(comm, StaleParameterServer, **options), 5, world)[0]
    expected = launch(lambda comm: run(comm, ParameterServer), 5, world)[0]
    assert expected < 0.8, "BSP itself must have learnt"
    assert got < 1.15 * expected, f"loss {got}, BSP {expected}"


@pytest.fixture(scope="module")
def compared():
    """Compare's rows of this method, of its own settings, in the local world."""
    keys = [key for key in METHODS if key.startswith("parameter_server/")]
    report, _ = compare(keys, "mlp", world=LocalWorld())
    return {str(row["variant"]): row for row in report["rows"]}


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["", "_sharded", "_colocated"])
@pytest.mark.parametrize("rule", ["ssp", "async"])
def test_rows_of_compare_converge_within_a_margin(rule, layout, compared):
    """With momentum 0.9: the mean loss of the last 10 steps within 40 % of serial's."""
    row, serial = compared[rule + layout], compared["None"]
    got, expected = (np.mean(which["loss"][-10:]) for which in (row, serial))
    print(f"loss {got:.3f}, serial {expected:.3f}; accuracy {row['accuracy']:.1%}")
    assert max(row["loss"]) <= 1.01 * row["loss"][0], "it goes astray"
    assert got < 1.4 * expected
    assert row["accuracy"] > serial["accuracy"] - 0.06


@pytest.mark.slow
def test_momentum_needs_the_remedies(monkeypatch):
    """What the margin above would be without looking ahead, and without either."""
    aware = partial(StaleParameterServer, staleness_aware=True)
    losses = []
    for kind in (partial(LookAhead, staleness_aware=True), aware, StaleParameterServer):
        monkeypatch.setitem(METHODS, "parameter_server/async", kind)
        report, _ = compare(["parameter_server/async"], "mlp", world=LocalWorld())
        losses.append(np.mean(report["rows"][1]["loss"][-10:]))
    print(losses)
    assert losses[0] < 0.95 * losses[1] < 0.9 * losses[2], losses


def test_a_negative_bound_is_refused():
    with pytest.raises(ValueError, match=r"staleness bound is 0, 1, \.\.\. or None, not -1"):
        launch(lambda comm: free_run(comm, staleness=-1), 2, LocalWorld())


# Mutants


def bound_off_by_one(monkeypatch):
    monkeypatch.setattr(
        StaleParameterServer,
        "may_go",
        lambda self, worker: self.clocks[worker] - min(self.clocks.values()) <= self.staleness + 1,
    )


def bound_counts_from_the_fastest(monkeypatch):
    monkeypatch.setattr(
        StaleParameterServer,
        "may_go",
        lambda self, worker: max(self.clocks.values()) - self.clocks[worker] <= self.staleness,
    )


def push_applied_twice(monkeypatch):
    take = StaleParameterServer.receive_push

    def generous(self):
        before = self.repeated
        take(self)
        if self.repeated > before:
            self.update_keys()

    monkeypatch.setattr(StaleParameterServer, "receive_push", generous)


def staleness_not_reset_by_a_pull(monkeypatch):
    answer = StaleParameterServer.answer

    def forgetful(self, worker):
        pulled = self.pulled[worker]
        answer(self, worker)
        self.pulled[worker] = pulled

    monkeypatch.setattr(StaleParameterServer, "answer", forgetful)


def answers_with_the_first_parameters(monkeypatch):
    init = StaleParameterServer.__init__

    def frozen(self, *args, **options):
        init(self, *args, **options)
        if self.serves:
            send, old = self.comm.send, self.data.copy()
            self.comm.send = lambda array, to, tag=0: send(old if tag == 2 else array, to, tag)

    monkeypatch.setattr(StaleParameterServer, "__init__", frozen)


def worker_steps_too(monkeypatch):
    push = StaleParameterServer.push_and_pull

    def eager(self, clock, loss):
        self.update()
        push(self, clock, loss)

    monkeypatch.setattr(StaleParameterServer, "push_and_pull", eager)


def boundary_leaves_an_element_out(monkeypatch):
    def short(length, size, chunks=key_ranges.chunks):
        parts = chunks(length, size)
        return [slice(parts[0].start, parts[0].stop - (size > 1)), *parts[1:]]

    monkeypatch.setattr(key_ranges, "chunks", short)


def boundary_overlaps_by_one_element(monkeypatch):
    """Both servers own an element: the numbers stay right, and a worker sends too much."""

    def overlapping(length, size, chunks=key_ranges.chunks):
        parts = chunks(length, size)
        return [slice(parts[0].start, parts[0].stop + (size > 1)), *parts[1:]]

    monkeypatch.setattr(key_ranges, "chunks", overlapping)


def worker_beside_its_server_does_not_wait_for_it(monkeypatch):
    """The bound is broken on that server's keys."""
    may_go = StaleParameterServer.may_go
    monkeypatch.setattr(
        StaleParameterServer,
        "may_go",
        lambda self, worker: worker == self.comm.rank or may_go(self, worker),
    )


def everything():
    """The claims above, in short."""
    test_the_fast_go_as_far_ahead_as_the_bound_allows(1, 1, 1)
    test_the_fast_go_as_far_ahead_as_the_bound_allows(1, 1, "all")
    test_parameters_are_those_of_the_recorded_updates(2, 1, False, StaleParameterServer, 0)
    test_a_push_that_comes_twice_is_applied_once(Stutter, 2)
    test_bytes_of_a_free_run_are_those_of_the_closed_form()
    momentum = lambda: SGD(0.1, momentum=0.9)
    test_optimizer_state_lives_on_servers_alone("ssp", "", [270, 0, 0, 0], momentum)


@pytest.mark.parametrize(
    "mutant",
    [
        bound_off_by_one,
        bound_counts_from_the_fastest,
        worker_beside_its_server_does_not_wait_for_it,
        push_applied_twice,
        staleness_not_reset_by_a_pull,
        answers_with_the_first_parameters,
        worker_steps_too,
        boundary_leaves_an_element_out,
        boundary_overlaps_by_one_element,
    ],
    ids=lambda mutant: mutant.__name__,
)
def test_mutant_is_rejected(mutant, monkeypatch):
    everything()
    mutant(monkeypatch)
    with pytest.raises((AssertionError, Deadlock, ValueError, IndexError)) as rejection:
        everything()
    print(f"{mutant.__name__}: {rejection.value}")


def test_slices_of_a_declared_model_are_those_of_the_flat_array():
    assert parameter_slices(mlp((12, 9, 5))) == mlp((12, 9, 5)).init(0).flat.slices
