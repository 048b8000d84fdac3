"""Pushes to parameter servers: compressed, clipped, repeated; their limits and their formulas."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import numpy as np
import pytest

from minidist import LocalWorld, Machine, launch
from minidist.comm import CommError
from minidist.comm.local.world import Deadlock
from minidist.data import Batches, fashion_mnist
from minidist.engine import array as arrays
from minidist.engine.array import defaults
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import LAMB, SGD
from minidist.parallel import (
    METHODS,
    BackupWorkers,
    ParameterServer,
    Serial,
    StaleParameterServer,
)
from minidist.parallel.gradient_compression.compressors import (
    BFloat16,
    Float16,
    PowerSGD,
    Quantised,
    RandomK,
    Sign,
    TopK,
)
from minidist.parallel.server import pushes
from minidist.parallel.server.pushes import shapes_in
from tests.parallel.checks import (
    Setting,
    check_equals_serial,
    check_predictions,
    make,
    serial,
    train,
)

SLOW_NET = {"latency": 1e-5, "bandwidth": 1e8, "reduce_bandwidth": 3e8, "flops": 1e8}
COMPRESSORS = [Float16, BFloat16, partial(TopK, 0.1), RandomK, Sign, Quantised, PowerSGD]
LOSSLESS = [partial(TopK, 1.0), partial(RandomK, 1.0)]  # PowerSGD: a shard's rank is too low
KINDS = {
    "bsp": ParameterServer,
    "bsp, 2 servers": partial(ParameterServer, servers=2),
    "bsp, 3 servers": partial(ParameterServer, servers=3),
    "bsp, colocated": partial(ParameterServer, colocated=True),
    "async": StaleParameterServer,
    "async, 2 servers": partial(StaleParameterServer, servers=2),
    "async, colocated": partial(StaleParameterServer, colocated=True),
    "backup": BackupWorkers,
    "backup of none": partial(BackupWorkers, backups=0),
}
SYNCHRONOUS = [kind for kind in KINDS if kind.startswith("bsp") or kind == "backup of none"]


def name_of(kind):
    kind = getattr(kind, "func", kind)
    return kind.__name__


def possible(kind, ranks):
    return ranks > getattr(KINDS[kind], "keywords", {}).get("servers", 0)


# Compressed


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=name_of)
@pytest.mark.parametrize("kind", KINDS)
def test_compressed_pushes_send_hold_and_take_what_the_formula_says(kind, compressor, monkeypatch):
    monkeypatch.setitem(METHODS, "compressed", partial(KINDS[kind], compressor=compressor))
    for ranks in (1, 2, 4, 6):
        if possible(kind, ranks):
            machine = LocalWorld(Machine(**SLOW_NET, slowdown={ranks - 1: 3.0}))
            setting = Setting(steps=2, batch=13)
            launch(lambda comm, s=setting: check_predictions(comm, "compressed", s), ranks, machine)


@pytest.mark.parametrize("compressor", LOSSLESS, ids=name_of)
@pytest.mark.parametrize("kind", SYNCHRONOUS)
def test_nothing_left_out_equals_serial(kind, compressor, monkeypatch):
    monkeypatch.setitem(METHODS, "lossless", partial(KINDS[kind], compressor=compressor))
    for ranks in (1, 2, 3, 4):
        if possible(kind, ranks):
            for batch in (12, 13):
                setting = Setting(batch=batch)
                launch(lambda comm, s=setting: check_equals_serial(comm, "lossless", s), ranks)


@pytest.mark.parametrize("compressor", LOSSLESS, ids=name_of)
@pytest.mark.parametrize("layout", [{}, {"servers": 2}, {"colocated": True}], ids=str)
def test_nothing_left_out_and_no_staleness_equals_serial(layout, compressor, monkeypatch):
    kind = partial(StaleParameterServer, staleness=0, compressor=compressor, **layout)
    monkeypatch.setitem(METHODS, "lossless", kind)
    setting = Setting(optimizer=lambda: SGD(0.1))
    for ranks in (2, 4) if "servers" not in layout else (3, 5):
        launch(lambda comm: check_equals_serial(comm, "lossless", setting), ranks, LocalWorld())


def check_nothing_is_lost(kind, compressor, ranks=5):
    """Plain SGD of rate 1: where it went + what workers still owe = all gradients computed."""
    setting = Setting(steps=9)

    def run(comm):
        with defaults(dtype="float64"):
            method = KINDS[kind](
                mlp(setting.widths), CrossEntropy(), SGD(1e-3), comm, 3, compressor=compressor
            )
            computed, compute = np.zeros(method.psi), method.forward_backward

            def noted(batch):
                loss = compute(batch)
                computed[:] += method.model.flat.grad
                return loss

            method.forward_backward = noted
            train(method, setting)
            owed = np.zeros(method.psi)
            for server, sender in method.pushes.senders.items():
                owed[method.keys[server]] = sender.residual
            end = np.concatenate([v.reshape(-1) for v in method.parameters().values()])
            return computed, owed, end

    with defaults(dtype="float64"):
        start = mlp(setting.widths).init(3).flat.data
        computed, owed, ends = zip(*launch(run, ranks, LocalWorld()), strict=True)
    moved = (start - ends[0]) / 1e-3
    total = np.sum(computed, axis=0)
    gap = np.abs(moved + np.sum(owed, axis=0) - total).max() / np.abs(total).max()
    assert np.abs(np.sum(owed, axis=0)).max() > 1e-3, "nothing was left out at all"
    assert gap < 1e-11, f"{gap:.1e} of the gradients was lost or invented"


@pytest.mark.parametrize("compressor", [partial(TopK, 0.1), RandomK, Sign, PowerSGD], ids=name_of)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "backup" not in kind])
def test_error_feedback_loses_nothing(kind, compressor):
    check_nothing_is_lost(kind, compressor)


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=name_of)
@pytest.mark.parametrize("kind", ["bsp, 2 servers", "async, colocated"])
def test_pushes_from_a_device_say_what_pushes_from_the_host_say(kind, compressor, monkeypatch):
    """The device is a stand-in that refuses to mix with NumPy."""
    import strict  # where pytest's path leads, and not that of tests/mpi

    monkeypatch.setitem(arrays.DEVICES, "strict", lambda: strict)
    monkeypatch.setitem(METHODS, "pushes", partial(KINDS[kind], compressor=compressor))
    losses = []
    for device in ("cpu", "strict"):
        with defaults(device=device, dtype="float64"):
            run = lambda comm: train(make("pushes", comm, Setting(steps=3)), Setting(steps=3))[0]
            losses.append(launch(run, 4, LocalWorld())[0])
    # PowerSGD makes nearly dependent columns orthogonal: on the host alone, parameters that differ
    # by 3e-16 give a third loss that differs by 1.4e-6. A device rounds differently by as much.
    tolerance = 1e-5 if compressor is PowerSGD else 1e-6
    np.testing.assert_allclose(losses[1], losses[0], rtol=tolerance)


def test_a_worker_sends_a_fraction_of_the_gradient():
    """Closed form: 16 bytes of header, then 8k for the k largest of each of 2 ranges of Ψ/2."""

    def run(comm):
        method = KINDS["async, 2 servers"](
            mlp((12, 9, 5)), CrossEntropy(), SGD(0.1), comm, compressor=partial(TopK, 0.05)
        )
        before = comm.trace.sent.nbytes
        method.step(Batches(Setting().dataset, 12, 0)[0])
        return comm.trace.sent.nbytes - before

    assert launch(run, 5, LocalWorld())[2:] == [2 * 16 + 5 * 8 + 5 * 8] * 3  # 84 and 83 keys


@pytest.mark.parametrize("compressor", [partial(TopK, 0.05), Quantised, Sign], ids=name_of)
@pytest.mark.parametrize("kind", ["bsp, 2 servers", "async, 2 servers", "async, colocated"])
def test_compressed_pushes_learn_fashion_mnist(kind, compressor):
    """Plain SGD: the loss comes within 25 % of what uncompressed pushes reach."""
    training, _ = fashion_mnist()

    def run(comm, **options):
        method = KINDS[kind](mlp((784, 32, 10)), CrossEntropy(), SGD(0.1), comm, 0, **options)
        batches = Batches(training, 64, 0)
        return np.mean([method.step(batches[step]) for step in range(120)][-20:])

    expected = launch(run, 4, LocalWorld())[0]
    got = launch(lambda comm: run(comm, compressor=compressor), 4, LocalWorld())[0]
    print(f"{kind}, {name_of(compressor)}: {got:.3f}, uncompressed {expected:.3f}")
    assert expected < 0.8, "it must have learnt"
    assert got < 1.25 * expected, f"loss {got}, uncompressed {expected}"


def test_ranges_cut_parameters_into_rows_and_pieces_of_rows():
    model = mlp((12, 9, 5))  # weight (12, 9), bias (9,), weight (9, 5), bias (5,)
    for bounds in ([0, 167], [0, 84, 167], [0, 56, 112, 167], [0, 1, 2, 120, 121, 167]):
        cut = [shapes_in(model, slice(*pair)) for pair in pairwise(bounds)]
        sizes = [sum(int(np.prod(shape)) for shape in shapes.values()) for shapes in cut]
        assert sizes == list(np.diff(bounds))
    assert list(shapes_in(model, slice(4, 31)).values()) == [(5,), (2, 9), (4,)]
    assert list(shapes_in(model, slice(0, 117)).values()) == [(12, 9), (9,)]


@pytest.mark.parametrize("compressor", ["gzip", 8, dict], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_compressor_is_refused(kind, compressor):
    def run(comm):
        KINDS[kind](mlp((12, 5)), CrossEntropy(), SGD(0.1), comm, compressor=compressor)

    with pytest.raises(ValueError, match=r"unknown compressor .*pass a class of minidist"):
        launch(run, 5, LocalWorld())


# Clipped


class ClippedSerial(Serial):
    """The oracle, clipped."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options, clip=0.3)


def check_clipped_here(comm, kind, setting):
    """On this rank: as serial training with the same limit, which every step of it exceeds."""
    with defaults(dtype="float64"):
        method = KINDS[kind](
            mlp(setting.widths), CrossEntropy(), setting.optimizer(), comm, 3, clip=0.3
        )
        serial = ClippedSerial(
            mlp(setting.widths), CrossEntropy(), setting.optimizer(), comm.split(comm.rank), 3
        )
        losses, states = train(method, setting)
        expected_losses, expected = train(serial, setting)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-12)
    for name in expected[-1]:
        np.testing.assert_allclose(states[-1][name], expected[-1][name], rtol=0, atol=1e-12)


def check_clipped(kind, ranks, setting):
    launch(lambda comm: check_clipped_here(comm, kind, setting), ranks, LocalWorld())


@pytest.mark.parametrize("kind", SYNCHRONOUS)
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6])
def test_servers_agree_on_the_norm(kind, ranks):
    if possible(kind, ranks):
        for batch in (12, 13):
            check_clipped(kind, ranks, Setting(batch=batch))


@pytest.mark.parametrize(("kind", "ranks"), [("async", 1), ("async", 2), ("async, 2 servers", 3)])
def test_one_worker_clips_as_serial_does(kind, ranks):
    check_clipped(kind, ranks, Setting())


@pytest.mark.parametrize("layout", [{}, {"servers": 2}, {"colocated": True}], ids=str)
def test_no_worker_moves_the_servers_further_than_its_share(layout):
    """Of W workers none may push more than 1/W of the limit, so a batch is within it."""
    setting = Setting()

    def run(comm, clip):
        kind = partial(StaleParameterServer, clip=clip, staleness=0, **layout)
        method = kind(mlp(setting.widths), CrossEntropy(), SGD(1.0), comm, 3)
        _, states = train(method, setting)
        flat = [np.concatenate([v.reshape(-1) for v in state.values()]) for state in states]
        return [float(np.linalg.norm(after - before)) for before, after in pairwise(flat)]

    free = launch(lambda comm: run(comm, None), 5, LocalWorld())[0]
    limit = 0.5 * min(free)
    for moves in launch(lambda comm: run(comm, limit), 5, LocalWorld()):
        assert max(moves) <= limit * (1 + 1e-6), moves
        assert max(moves) > 0.5 * limit, moves


@pytest.mark.parametrize("optimizer", [lambda: SGD(0.1, momentum=0.9), lambda: LAMB(0.01)])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "async, 2 servers"])
@pytest.mark.parametrize("clip", [None, 0.3])
def test_agreeing_on_norms_costs_what_the_formula_says(kind, clip, optimizer, monkeypatch):
    """One number for the limit; two for each parameter under a layer-wise rule."""
    if kind == "async, colocated" and optimizer().layerwise:
        return  # refused: see the next test
    monkeypatch.setitem(METHODS, "norms", partial(KINDS[kind], clip=clip))
    for ranks in (1, 2, 3, 4, 6):
        if possible(kind, ranks):
            machine = LocalWorld(Machine(**SLOW_NET, slowdown={ranks - 1: 3.0}))
            setting = Setting(steps=2, optimizer=optimizer)
            launch(lambda comm, s=setting: check_predictions(comm, "norms", s), ranks, machine)


@pytest.mark.parametrize("layout", [{"servers": 2}, {"colocated": True}], ids=str)
def test_servers_that_do_not_wait_cannot_agree_on_norms(layout):
    def run(comm):
        StaleParameterServer(mlp((12, 5)), CrossEntropy(), LAMB(0.1), comm, **layout)

    with pytest.raises(ValueError, match="LAMB needs the norms of whole parameters, and 2 servers"):
        launch(run, 2 if "colocated" in layout else 4, LocalWorld())


@pytest.mark.parametrize("clip", [0, -1.0, float("nan")])
def test_a_limit_that_is_no_norm_is_refused(clip):
    def run(comm):
        ParameterServer(mlp((12, 5)), CrossEntropy(), SGD(0.1), comm, clip=clip)

    with pytest.raises(ValueError, match="the norm to clip to must be positive, not"):
        launch(run, 2, LocalWorld())


# Repeated: see also test_stale_parameter_server.py


class Stutter(ParameterServer):
    """Every worker's every push is sent once more."""

    def work(self, batch):
        requests, grad = super().work(batch), self.model.flat.grad_and_loss.copy()
        tag = pushes.PUSH + 3 * (self.steps % 1000)
        for server in self.clients_of(self.comm.rank):
            self.comm.isend(grad[self.ranges[server]], self.servers[server], tag)
        return requests


@pytest.mark.parametrize("servers", [1, 2])
def test_a_repeated_push_is_not_taken_for_the_next_step(servers, monkeypatch):
    monkeypatch.setitem(METHODS, "stutter", partial(Stutter, servers=servers))
    # What a rank sent twice is left at the end of the launch, which says so: not an assertion.
    with pytest.raises(CommError, match=r"nobody received send\("):
        launch(lambda comm: check_equals_serial(comm, "stutter", Setting()), 4, LocalWorld())


class StutteringBackup(BackupWorkers):
    """Worker 2 sends every third push again, and worker 3 what it had sent a clock before."""

    def push(self, server, message):
        super().push(server, message)
        clock = message[0][0]
        if self.comm.rank == 2 and clock % 3 == 1:
            super().push(server, message)
        if self.comm.rank == 3 and clock % 3 == 2:
            super().push(server, [message[0] - [1, 0], *message[1:]])


def check_backup_workers(kind):
    """With nobody to spare it is synchronous, so a push counted twice shows in the parameters."""
    setting = Setting(steps=7)

    def run(comm):
        with defaults(dtype="float64"):
            method = kind(mlp(setting.widths), CrossEntropy(), setting.optimizer(), comm, 3, 0)
            batches = Batches(setting.dataset, setting.batch, setting.seed)
            losses = method.train([batches[step] for step in range(setting.steps)])
            return losses, method.parameters(), (method.dropped, method.repeated)

    results = launch(run, 5, LocalWorld())
    with defaults(dtype="float64"):
        (losses, states), *_ = launch(lambda comm: serial(comm, setting), 1, LocalWorld())
    for got, parameters, _ in results:
        np.testing.assert_allclose(got, losses, rtol=1e-12)
        for name, expected in states[-1].items():
            np.testing.assert_allclose(parameters[name], expected, rtol=0, atol=1e-12)
    return results[0][2]


def test_backup_workers_recognise_what_comes_again():
    assert check_backup_workers(BackupWorkers) == (0, 0)
    assert check_backup_workers(StutteringBackup) == (0, 4)


# Mutants


def norm_of_its_own_range_alone(monkeypatch):
    monkeypatch.setattr(ParameterServer, "sum_over_servers", lambda self, numbers: None)


def backup_takes_whatever_comes(monkeypatch):
    init = BackupWorkers.__init__

    def naive(self, *args, **options):
        init(self, *args, **options)
        self.clocks = Always()

    class Always(dict):
        def __getitem__(self, worker):
            return -1

    monkeypatch.setattr(BackupWorkers, "__init__", naive)


def residual_forgotten(monkeypatch):
    pack = pushes.Pushes.pack

    def forgetful(self, server, grad, step):
        packed = pack(self, server, grad, step)
        if self.senders:
            self.senders[server].residual[...] = 0
        return packed

    monkeypatch.setattr(pushes.Pushes, "pack", forgetful)


def sum_not_begun_anew(monkeypatch):
    add = pushes.Pushes.add
    monkeypatch.setattr(
        pushes.Pushes,
        "add",
        lambda self, comm, total, arrived, first, step: add(
            self, comm, total, arrived, False, step
        ),
    )


def one_compressor_for_all_servers(monkeypatch):
    """Its residual is of another range's length, or another range's."""
    start = pushes.Pushes.start_sending

    def shared(self, grad, servers):
        start(self, grad, servers)
        first = next(iter(self.senders.values()), None)
        for sender in self.senders.values():
            if sender.residual.size == first.residual.size:
                sender.residual = first.residual

    monkeypatch.setattr(pushes.Pushes, "start_sending", shared)


@pytest.mark.parametrize(
    "mutant",
    [
        norm_of_its_own_range_alone,
        backup_takes_whatever_comes,
        residual_forgotten,
        sum_not_begun_anew,
        one_compressor_for_all_servers,
    ],
    ids=lambda mutant: mutant.__name__,
)
def test_mutant_is_rejected(mutant, monkeypatch):
    mutant(monkeypatch)
    with pytest.raises((AssertionError, Deadlock, ValueError)) as rejection:
        check_clipped("bsp, 2 servers", 4, Setting())
        check_nothing_is_lost("bsp, 2 servers", partial(TopK, 0.1))
        check_nothing_is_lost("async, 2 servers", partial(TopK, 0.1))
        check_backup_workers(StutteringBackup)
    print(f"{mutant.__name__}: {rejection.value}")
