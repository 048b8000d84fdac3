"""Backup workers: b = 0 is serial, late gradients are dropped, and nobody waits for them."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from minidist import LocalWorld, Machine, launch
from minidist.comm import Crash, Deadlock
from minidist.data import Batches
from minidist.engine.array import defaults
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import Adam
from minidist.parallel import METHODS, BackupWorkers
from tests.parallel.checks import Setting, check_equals_serial, check_predictions


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_no_backups_equals_serial(ranks, monkeypatch):
    monkeypatch.setitem(METHODS, "b=0", partial(BackupWorkers, backups=0))
    setting = Setting(optimizer=lambda: Adam(1e-2))
    launch(lambda comm: check_equals_serial(comm, "b=0", setting), ranks, LocalWorld())


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("backups", [0, 1, 2])
def test_bytes_and_memory_equal_the_formula(ranks, backups, monkeypatch):
    monkeypatch.setitem(METHODS, "backup", partial(BackupWorkers, backups=backups))
    launch(lambda comm: check_predictions(comm, "backup", Setting(steps=3)), ranks, LocalWorld())


def run(backups, slowdown, setting, crash=None):
    """Losses, parameters, gradients dropped and clocks computed, by rank."""

    def function(comm):
        with defaults(dtype=setting.dtype):
            method = BackupWorkers(
                mlp(setting.widths), CrossEntropy(), setting.optimizer(), comm, 3, backups
            )
            compute, clocks = method.forward_backward, []

            def noted(batch):
                clocks.append(batch.step)
                if (comm.rank, batch.step) == crash:
                    raise Crash("power cut")
                return compute(batch)

            method.forward_backward = noted
            batches = Batches(setting.dataset, setting.batch, 3)
            losses = method.train([batches[step] for step in range(setting.steps)])
            return losses, method.parameters(), method.dropped, clocks, comm.time()

    machine = Machine(latency=0.0, bandwidth=1e12, flops=1e8, slowdown=slowdown)
    return launch(function, 5, LocalWorld(machine))


def check_straggler_is_dropped():
    """Rank 4 takes 3.4 times as long: it begins clocks 0, 3 and 6, and all it does is dropped."""
    setting = Setting(steps=10, batch=12)
    results = run(1, {4: 3.4}, setting)
    assert results[4][3] == [0, 3, 6]
    assert results[0][2] == 3, f"{results[0][2]} dropped"
    assert all(results[rank][3] == list(range(10)) for rank in (1, 2, 3))

    # The oracle: serial training on the shards of the three others.
    with defaults(dtype="float64"):
        model, optimizer = mlp(setting.widths).init(3), setting.optimizer()
        batches, losses = Batches(setting.dataset, setting.batch, 3), []
        for step in range(setting.steps):
            model.zero_grad()
            total = 0.0
            for worker in range(3):
                shard = batches[step].shard(worker, 4)
                loss = CrossEntropy()(
                    model(shard.inputs), shard.targets, shard.count(CrossEntropy())
                )
                loss.backward()
                total += loss.item()
            optimizer.step(model.flat.data, model.flat.grad * (4 / 3))
            losses.append(total * 4 / 3)
    for got, parameters, *_ in results:
        np.testing.assert_allclose(got, losses, rtol=1e-12)
        for name, expected in model.state().items():
            np.testing.assert_allclose(parameters[name], expected, rtol=1e-10, atol=1e-13)


def test_a_straggler_is_dropped_and_skips_what_it_missed():
    check_straggler_is_dropped()


def test_nobody_waits_for_the_backup():
    setting = Setting(steps=10, batch=12)
    even, straggling = run(1, {}, setting)[0][4], run(1, {4: 3.5}, setting)[0][4]
    waiting = run(0, {4: 3.5}, setting)[0][4]
    assert straggling < 1.3 * even, "at most its last batch is waited for"
    assert waiting > 3 * even


def test_two_late_of_four_with_one_backup_are_waited_for():
    results = run(1, {3: 3.0, 4: 3.5}, Setting(steps=6))
    assert results[3][3] == list(range(6)), "the third is needed in every clock"


@pytest.mark.parametrize("backups", [0, 1])
def test_a_worker_that_dies_is_left_out(backups):
    results = run(backups, {}, Setting(steps=8), crash=(2, 3))
    assert results[2] is None
    losses = results[0][0]
    assert len(losses) == 8 and all(np.isfinite(losses)) and min(losses) > 0
    for result in (results[1], results[3], results[4]):
        assert result[0] == losses


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="0 or more, not -1"):
        run(-1, {}, Setting())


# Mutants


def late_gradients_count_in_the_next_clock(monkeypatch):
    take = BackupWorkers.receive_and_add
    monkeypatch.setattr(
        BackupWorkers,
        "receive_and_add",
        lambda self, now, first: (take(self, now, first)[0], now),
    )


def sum_not_scaled_up(monkeypatch):
    update = BackupWorkers.update_keys

    def small(self):
        self.total *= self.wanted / len(self.workers)
        update(self)

    monkeypatch.setattr(BackupWorkers, "update_keys", small)


def one_too_many_awaited(monkeypatch):
    monkeypatch.setattr(BackupWorkers, "wanted", property(lambda self: len(self.workers)))


@pytest.mark.parametrize(
    "mutant",
    [late_gradients_count_in_the_next_clock, sum_not_scaled_up, one_too_many_awaited],
    ids=lambda mutant: mutant.__name__,
)
def test_mutant_is_rejected(mutant, monkeypatch):
    mutant(monkeypatch)
    with pytest.raises((AssertionError, Deadlock)):
        check_straggler_is_dropped()
