"""ZeRO: every optimizer, shared parameters, the paper's closed forms, and wrong versions."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from minidist import LocalWorld, launch
from minidist.collectives import ring
from minidist.data import Batches, Dataset
from minidist.engine.array import defaults
from minidist.models import gpt, mlp
from minidist.nn import CrossEntropy, Linear, Sequential
from minidist.optim import LAMB, LARS, SGD, AdaGrad, Adam, AdamW, Nesterov, RMSprop
from minidist.parallel import Overlapped, PerParameter, Serial, Zero1, Zero2, Zero3
from minidist.parallel.evaluation import evaluate
from minidist.parallel.zero import stage1, stage3
from minidist.parallel.zero.stage1 import Sharded
from minidist.parallel.zero.stage2 import ReduceScatterSlots
from tests.parallel.checks import (
    Setting,
    check_equals_serial,
    check_predictions,
    images,
    make,
    serial,
    train,
)

STAGES = {"zero/1": Zero1, "zero/2": Zero2, "zero/3": Zero3}
OPTIMIZERS = {
    "nesterov": lambda: Nesterov(0.05, momentum=0.9),
    "adagrad": lambda: AdaGrad(0.05),
    "rmsprop": lambda: RMSprop(1e-2),
    "adam": lambda: Adam(1e-2),
    "adamw": lambda: AdamW(1e-2, weight_decay=0.1, exclude=("*bias",)),
    "lars": lambda: LARS(1.0, weight_decay=1e-3, trust=0.02),
    "lamb": lambda: LAMB(1e-2),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("key", STAGES)
def test_every_optimizer(key, optimizer):
    setting = Setting(optimizer=OPTIMIZERS[optimizer], steps=4)

    def checks(comm):
        check_equals_serial(comm, key, setting)
        check_predictions(comm, key, setting)

    launch(checks, 3, LocalWorld())


def tokens(count=24, length=6, vocabulary=11):
    random = np.random.default_rng(3)
    text = random.integers(0, vocabulary, (count, length + 1))
    return Dataset("tokens", text[:, :-1], text[:, 1:], vocabulary)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize(
    "factory",
    [
        PerParameter,
        partial(Overlapped, bucket_mb=4e-3, last_mb=1e-3),
        *STAGES.values(),
    ],
    ids=["per_parameter", "overlapped", *STAGES],
)
def test_gpt_with_a_table_that_two_blocks_share(factory, ranks):
    launch(lambda comm: check_shared_table(comm, factory), ranks, LocalWorld())


def check_shared_table(comm, factory):
    dataset = tokens()

    def build(factory, comm):
        model = gpt(11, context=6, width=8, layers=2, heads=2)
        return factory(model, CrossEntropy(), AdamW(1e-2), comm, 5)

    with defaults(dtype="float64"):
        expected, method = build(Serial, comm.split(comm.rank)), build(factory, comm)
        for step in range(3):
            batch = Batches(dataset, 7, 0)[step]
            assert method.step(batch) == pytest.approx(expected.step(batch), rel=1e-12)
        got, reference = method.parameters(), expected.parameters()
        assert list(got) == list(reference)
        for name, values in reference.items():
            gap = np.abs(got[name] - values).max() / np.abs(values).max()
            assert gap < 1e-10, f"{name}: {gap}"


@pytest.mark.parametrize(("key", "volumes"), [("zero/1", 2), ("zero/2", 2), ("zero/3", 3)])
def test_bytes_and_memory_are_the_papers(key, volumes):
    """With even shards: 2Ψ, 2Ψ, 3Ψ elements times (p - 1)/p; and what is held divides by p."""
    p, psi, block = 4, 12 * 8 + 8 + 8 * 4 + 4, 12 * 8 + 8

    def run(comm):
        setting = Setting(
            widths=(12, 8, 4), optimizer=lambda: Adam(1e-2), dataset=images(20, 12, 4)
        )
        method = make(key, comm, setting)
        sent = comm.trace.sent.nbytes
        method.step(Batches(setting.dataset, 8)[0])
        sent = comm.trace.sent.nbytes - sent
        held = {kind: sum(a.size for a in arrays) for kind, arrays in method.arrays().items()}
        return sent, held

    results = launch(run, p)
    loss = sum(sent for sent, _ in results) - volumes * psi * 4 * (p - 1)  # all ranks together
    assert loss == 2 * (p - 1) * 8, f"beyond the formula, {loss} bytes were sent"
    for sent, held in results:
        assert abs(sent - volumes * psi * 4 * (p - 1) // p) <= 2 * (p - 1) * 8
        whole, part, slots = psi, psi // p, 2 * block
        assert (
            held
            == {
                "zero/1": {"parameters": whole, "gradients": whole, "optimizer": 2 * part},
                "zero/2": {"parameters": whole, "gradients": part + slots, "optimizer": 2 * part},
                "zero/3": {
                    "parameters": part + slots,
                    "gradients": part + slots,
                    "optimizer": 2 * part,
                },
            }[key]
        )


@pytest.mark.parametrize("kind", STAGES.values(), ids=STAGES)
def test_clipping_by_the_norm_of_all_shards(kind):
    setting = Setting(optimizer=lambda: SGD(0.5, momentum=0.9))

    def run(comm):
        def build(factory, comm):
            from minidist.models import mlp

            return factory(
                mlp(setting.widths), CrossEntropy(), setting.optimizer(), comm, clip=0.02
            )

        with defaults(dtype="float64"):
            return train(build(kind, comm), setting), train(
                build(Serial, comm.split(comm.rank)), setting
            )

    for (losses, _), (expected, _) in launch(run, 3):
        assert losses == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("key", STAGES)
def test_evaluation_without_a_backward(key):
    setting = Setting()

    def run(comm):
        method = make(key, comm, setting)
        forward = getattr(method, "forward", method.model)
        got = evaluate(forward, CrossEntropy(), setting.dataset, comm, chunk=16)
        method.step(Batches(setting.dataset, 13, 3)[0])  # and training goes on as if nothing was
        _, states = serial(comm, setting)
        after = method.parameters()
        assert all(np.allclose(after[n], states[0][n], atol=1e-5) for n in after)
        return got

    first, *others = launch(run, 3)
    assert all(other == first for other in others)
    assert first[0] == pytest.approx(np.log(5), abs=0.4)


def test_blocks_that_do_not_come_one_after_the_other_are_refused():
    """The last block's weight is used by the loss too, and that gradient comes at the very end."""
    kept = {}

    class Keep(Linear):
        def forward(self, x):
            kept["weight"] = self.weight
            return super().forward(x)

    class Odd(CrossEntropy):
        def forward(self, logits, targets, count=None):
            return (kept["weight"] * 0.1).sum() + super().forward(logits, targets, count)

    def run(comm):
        dataset = Dataset("flat", np.ones((8, 6)), np.zeros(8, np.int64), 3)
        model = Sequential(Linear(6, 5), Linear(5, 4), Keep(4, 3))
        Zero2(model, Odd(), SGD(0.1), comm).step(Batches(dataset, 4)[0])

    with pytest.raises(RuntimeError, match=r"2.weight got a gradient after.*use stage 1"):
        launch(run, 1)


def instead_of_ring(monkeypatch, module, **functions):
    """Let this module alone see a ring with other functions."""
    monkeypatch.setattr(module, "ring", SimpleNamespace(**(vars(ring) | functions)))


def forgets_to_gather_after_the_update(monkeypatch):
    def forgetful(self, limit):
        self.clip(limit)
        self.step_shards()

    monkeypatch.setattr(Sharded, "update", forgetful)


def shards_off_by_one_rank(monkeypatch):
    def wrong(comm, array, parts):
        ring.reduce_scatter(comm, array, parts=parts[1:] + parts[:1])

    instead_of_ring(monkeypatch, stage1, reduce_scatter=wrong)


def does_not_gather_again_for_the_backward(monkeypatch):
    monkeypatch.setattr(Zero3, "before_backward", lambda self, index: None)


def overwrites_a_slot_still_on_the_wire(monkeypatch):
    """Clears the memory of gradients that are still being sent."""

    def hasty(self, index, grad):
        if index + 1 < len(self.in_blocks):
            self.reduce(self.in_blocks[index + 1])
            self.in_blocks[index + 1].buffer.fill(0)
        self.clear(self.in_blocks[index])

    monkeypatch.setattr(ReduceScatterSlots, "before_backward", hasty)


def every_rank_keeps_all_state(monkeypatch):
    def whole(self, batch, step=Zero1.step):
        loss = step(self, batch)
        (part,) = self.optimizer.parts
        part.state = {
            name: np.concatenate([array] * self.comm.size)[: self.model.flat.size]
            for name, array in part.state.items()
        }
        return loss

    monkeypatch.setattr(Zero1, "step", whole)


def gathers_whole_units_from_everybody(monkeypatch):
    def wasteful(comm, array, parts):
        own = array[parts[comm.rank]].copy()
        array.fill(0)
        array[parts[comm.rank]] = own
        ring.all_reduce(comm, array)

    instead_of_ring(monkeypatch, stage3, all_gather=wasteful)


def no_prefetch(monkeypatch):
    gather = Zero3.gather

    def lazy(self, unit):
        if self.comm.trace.name == "wait for parameters":
            gather(self, unit)

    def wait(self, unit, wait=Zero3.wait_for_parameters):
        with self.comm.step("wait for parameters"):
            wait(self, unit)

    monkeypatch.setattr(Zero3, "gather", lazy)
    monkeypatch.setattr(Zero3, "wait_for_parameters", wait)


MUTANTS = [
    ("zero/1", shards_off_by_one_rank),
    ("zero/1", every_rank_keeps_all_state),
    ("zero/2", forgets_to_gather_after_the_update),
    ("zero/2", overwrites_a_slot_still_on_the_wire),
    ("zero/3", does_not_gather_again_for_the_backward),
    ("zero/3", gathers_whole_units_from_everybody),
    ("zero/3", no_prefetch),
]


@pytest.mark.parametrize(("key", "mutant"), MUTANTS, ids=[mutant.__name__ for _, mutant in MUTANTS])
def test_mutant_is_rejected(key, mutant, monkeypatch):
    mutant(monkeypatch)

    def checks(comm):
        check_equals_serial(comm, key, Setting())
        check_predictions(comm, key, Setting())

    with pytest.raises((AssertionError, ValueError, RuntimeError)) as rejection:
        launch(checks, 3, LocalWorld())
    print(f"{mutant.__name__}: {rejection.value}")


def test_overlapped_seconds_are_unknown_on_one_rank_too():
    """Only the simulation knows them. What is left without the overlap is 0 seconds on one rank."""
    batch = Batches(Dataset("zeros", np.zeros((16, 8)), np.zeros(16, int), 8), 16)[0]

    def seconds(comm):
        method = Zero2(mlp((8, 8, 8)), CrossEntropy(), SGD(0.1), comm)
        return method.cost(batch, comm.machine).seconds

    assert launch(seconds, 1, LocalWorld()) == [None]
