"""Elastic averaging: the two equations, their exact limits, and what they send."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from minidist import LocalWorld, Machine, launch
from minidist.comm import Crash
from minidist.data import Batches, fashion_mnist
from minidist.engine.array import defaults
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import SGD
from minidist.parallel import METHODS, ElasticAveraging, ParameterServer, ServerLost
from tests.parallel.checks import Setting, check_equals_serial, check_predictions


def oracle(setting, workers, every, pull):
    """Equations 5 and 6 on plain arrays: the losses, the centre, and every worker's parameters."""
    model, loss = mlp(setting.widths).init(setting.seed), CrossEntropy()
    centre = model.flat.data.copy()
    copies = [centre.copy() for _ in range(workers)]
    optimizers = [setting.optimizer() for _ in range(workers)]
    batches, losses = Batches(setting.dataset, setting.batch, setting.seed), []
    for step in range(setting.steps):
        total = 0.0
        for worker, (own, optimizer) in enumerate(zip(copies, optimizers, strict=True)):
            shard = batches[step].shard(worker, workers)
            model.flat.data[...] = own
            model.zero_grad()
            mean = loss(model(shard.inputs), shard.targets, len(shard))
            mean.backward()
            total += mean.item() * len(shard) / len(batches[step])
            optimizer.step(own, model.flat.grad)
        losses.append(total)
        if (step + 1) % every == 0:
            alpha = pull / workers
            moves = [alpha * (own - centre) for own in copies]
            for own, move in zip(copies, moves, strict=True):
                own -= move
            centre = centre + sum(moves)
    return losses, centre, copies


def check_oracle(workers=3, every=2, pull=0.6, batch=13):
    setting = Setting(batch=batch, steps=7)

    def run(comm):
        with defaults(dtype="float64"):
            method = ElasticAveraging(
                mlp(setting.widths), CrossEntropy(), setting.optimizer(), comm, 3, every, pull
            )
            batches = Batches(setting.dataset, setting.batch, setting.seed)
            losses = [method.step(batches[step]) for step in range(setting.steps)]
            held = method.model.flat.data.copy() if method.works else method.data.copy()
            return losses, held, method.parameters()

    with defaults(dtype="float64"):
        losses, centre, copies = oracle(setting, workers, every, pull)
    results = launch(run, workers + 1, LocalWorld())
    for rank, (got, held, parameters) in enumerate(results):
        np.testing.assert_allclose(got, losses, rtol=1e-12)
        expected = copies[rank - 1] if rank else centre
        np.testing.assert_allclose(held, expected, rtol=1e-10, atol=1e-13, err_msg=f"rank {rank}")
        flat = np.concatenate([values.reshape(-1) for values in parameters.values()])
        np.testing.assert_allclose(flat, centre, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_parameters_are_those_of_the_equations(workers, every):
    check_oracle(workers, every)


@pytest.mark.parametrize("pull", [0.0, 1.0])
def test_extremes_of_the_spring(pull):
    """0: the centre never moves. 1: it jumps to the mean of the workers."""
    check_oracle(3, 2, pull)


def test_a_rank_alone_is_serial_training(monkeypatch):
    launch(lambda comm: check_equals_serial(comm, "easgd/sync", Setting()), 1, LocalWorld())


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("batch", [13, 16])
def test_bytes_memory_and_time_equal_the_formula(ranks, every, batch, monkeypatch):
    monkeypatch.setitem(METHODS, "elastic", partial(ElasticAveraging, every=every))
    machine = Machine(latency=1e-5, bandwidth=1e8, reduce_bandwidth=3e8, flops=1e8)
    setting = Setting(batch=batch)
    launch(lambda comm: check_predictions(comm, "elastic", setting), ranks, LocalWorld(machine))


def test_it_sends_a_fraction_of_what_a_synchronous_server_sends():
    """n from a worker every τ steps, and a loss every step."""

    def run(comm):
        setting = Setting(steps=12)
        method = ElasticAveraging(mlp(setting.widths), CrossEntropy(), SGD(0.1), comm, 0, every=4)
        batches = Batches(setting.dataset, setting.batch, 0)
        for step in range(setting.steps):
            method.step(batches[step])
        return comm.trace.totals()["by_step"]["exchange"]["bytes"] if method.works else 0

    assert launch(run, 4, LocalWorld(record=True)) == [0, *[3 * 270 * 4] * 3]


def test_convergence_on_fashion_mnist():
    """4 workers that meet every 4 steps: the centre's loss comes within 25 % of BSP's."""
    training, test = fashion_mnist()

    def run(comm, kind, rate, **options):
        method = kind(mlp((784, 32, 10)), CrossEntropy(), SGD(rate), comm, 0, **options)
        batches = Batches(training, 64, 0)
        for step in range(160):
            method.step(batches[step])
        model, sample = (
            mlp((784, 32, 10)).init().load(method.parameters()),
            test.batch(np.arange(1000)),
        )
        return CrossEntropy()(model(sample.inputs), sample.targets, 1000).item()

    got = launch(lambda comm: run(comm, ElasticAveraging, 0.1, every=4), 5, LocalWorld())[0]
    expected = launch(lambda comm: run(comm, ParameterServer, 0.1), 5, LocalWorld())[0]
    assert expected < 0.8, "BSP itself must have learnt"
    assert got < 1.25 * expected, f"loss {got}, BSP {expected}"


@pytest.mark.parametrize(
    ("options", "message"),
    [({"every": 0}, "every 1 or more steps, not 0"), ({"pull": 1.5}, r"in \[0, 1\], not 1.5")],
)
def test_bad_input_is_refused(options, message):
    def run(comm):
        ElasticAveraging(mlp((12, 5)), CrossEntropy(), SGD(0.1), comm, **options)

    with pytest.raises(ValueError, match=message):
        launch(run, 2, LocalWorld())


def survives(victim, dies_at=9, steps=20):
    """Losses and the centre on every rank; the victim's power fails in that step."""
    setting = Setting(steps=steps, optimizer=lambda: SGD(0.05, momentum=0.9))

    def run(comm):
        method = ElasticAveraging(
            mlp(setting.widths), CrossEntropy(), setting.optimizer(), comm, 3, every=2
        )
        batches, losses = Batches(setting.dataset, setting.batch, 3), []
        for step in range(steps):
            if (comm.rank, step) == (victim, dies_at):
                raise Crash("power cut")
            losses.append(method.step(batches[step]))
        return losses, method.parameters(), method.state()

    return launch(run, 4, LocalWorld())


@pytest.mark.parametrize("victim", [1, 2, 3])
def test_a_worker_that_dies_is_left_out(victim):
    results = survives(victim)
    whole = survives(-1)[0][0]
    assert results[victim] is None
    losses, parameters, _ = results[0]
    assert losses[:9] == whole[:9] and all(np.isfinite(losses))
    assert abs(losses[9] / whole[9] - 1) < 0.2, "the living stand for the whole batch"
    assert losses[9:] != whole[9:] and np.mean(losses[-5:]) < 1.05 * losses[0]
    for other, others, _ in (result for result in results if result is not None):
        assert other == losses
        assert all(np.array_equal(others[name], parameters[name]) for name in parameters)


def test_a_centre_that_dies_is_an_error_and_training_resumes_from_its_state():
    with pytest.raises(ServerLost, match=r"server 0 \(rank 0\) has died.*keys 0 to 269 of 270"):
        survives(0)
    saved = survives(-1, steps=8)

    def resume(comm):
        setting = Setting(optimizer=lambda: SGD(0.05, momentum=0.9))
        method = ElasticAveraging(mlp(setting.widths), CrossEntropy(), setting.optimizer(), comm)
        common = {n: a for n, a in saved[0][2].items() if not n.startswith("rank ")}
        method.load(common)  # without the workers' own models: all begin at the centre
        begin = method.parameters()
        own = method.model.state() if method.works else begin
        batches = Batches(setting.dataset, setting.batch, 3)
        return begin, own, [method.step(batches[step]) for step in range(8, 20)]

    for begin, own, losses in launch(resume, 4, LocalWorld()):
        assert all(np.isfinite(losses))
        for name, centre in saved[0][1].items():
            assert np.array_equal(begin[name], centre) and np.array_equal(own[name], centre)


# Mutants


def alpha_not_shared_by_the_workers(monkeypatch):
    init = ElasticAveraging.__init__

    def stiff(self, *args, **options):
        init(self, *args, **options)
        self.alpha *= len(self.workers)

    monkeypatch.setattr(ElasticAveraging, "__init__", stiff)


def meets_a_step_too_early(monkeypatch):
    monkeypatch.setattr(
        ElasticAveraging, "exchanges_after", lambda self, step: step % self.every == 0
    )


def gradient_of_the_global_mean(monkeypatch):
    def small(self, batch):
        shard = batch.shard(self.workers.index(self.comm.rank), len(self.workers))
        self.model.zero_grad()
        loss = self.forward_backward(shard)
        self.update()
        return loss

    monkeypatch.setattr(ElasticAveraging, "local_step", small)


def worker_jumps_to_the_centre(monkeypatch):
    def obedient(self):
        self.comm.send(self.model.flat.data, 0)
        self.comm.recv(self.model.flat.data, 0)

    monkeypatch.setattr(ElasticAveraging, "exchange", obedient)


def centre_takes_one_worker_after_the_other(monkeypatch):
    def eager(self):
        for worker in self.workers:
            self.comm.recv(self.incoming, worker)
            self.incoming -= self.data
            self.comm.send(self.data, worker)
            self.data += self.alpha * self.incoming

    def visit(self):
        data, centre = self.model.flat.data, self.incoming
        self.comm.send(data, 0)
        self.comm.recv(centre, 0)
        data += self.alpha * (centre - data)

    monkeypatch.setattr(ElasticAveraging, "serve", eager)
    monkeypatch.setattr(ElasticAveraging, "exchange", visit)


@pytest.mark.parametrize(
    "mutant",
    [
        alpha_not_shared_by_the_workers,
        meets_a_step_too_early,
        gradient_of_the_global_mean,
        worker_jumps_to_the_centre,
        centre_takes_one_worker_after_the_other,
    ],
    ids=lambda mutant: mutant.__name__,
)
def test_mutant_is_rejected(mutant, monkeypatch):
    mutant(monkeypatch)
    with pytest.raises(AssertionError):
        check_oracle()
