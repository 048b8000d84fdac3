"""Replicas that differ, and losses that are not finite, are noticed by all ranks in one step."""

from __future__ import annotations

import numpy as np
import pytest

from minidist import LocalWorld, launch
from minidist.comm import Disagreement
from minidist.data import Batches, Dataset
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import SGD, Adam
from minidist.parallel import (
    Compressed,
    DataParallel,
    LocalSGD,
    ParameterServer,
    Pipeline,
    Serial,
    Zero1,
    Zero2,
    Zero3,
)
from minidist.parallel.gradient_compression import TopK
from minidist.parallel.guards import NotFinite
from minidist.parallel.method import Unsupported

random = np.random.default_rng(0)
DATA = Dataset("noise", random.standard_normal((12, 6)).astype(np.float32),
               random.integers(0, 3, 12), 3)  # fmt: skip


def run(function, ranks=3):
    return launch(function, ranks, LocalWorld())


def make(comm, kind=DataParallel, seed=0, shape=(6, 5, 3), rule=None, **options):
    return kind(mlp(shape), CrossEntropy(), rule or SGD(0.1), comm, seed, **options)


@pytest.mark.parametrize(
    "different",
    [
        lambda comm: make(comm, seed=comm.rank),
        lambda comm: make(comm, shape=(6, 5 + comm.rank, 3)),
        lambda comm: make(comm, rule=SGD(0.1 + comm.rank)),
        lambda comm: make(comm, rule=(SGD if comm.rank else Adam)(0.1)),
        lambda comm: make(comm, (DataParallel, Zero1, Zero1)[comm.rank]),
        lambda comm: make(comm, clip=1.0 + comm.rank),
    ],
    ids=["seed", "model", "rate", "rule", "method", "clip"],
)
def test_ranks_that_build_different_methods_are_told(different):
    with pytest.raises(Disagreement, match="the method: "):
        run(different)


def test_data_in_another_order_on_each_rank_is_told():
    def main(comm):
        make(comm).step(Batches(DATA, 6, seed=comm.rank)[0])

    with pytest.raises(Disagreement, match="step"):
        run(main)


def test_a_flipped_bit_is_found_with_its_parameter_and_rank():
    def main(comm):
        method = make(comm)
        method.guard(replicas_every=2)
        for step in range(4):
            if comm.rank == 1 and step == 2:
                weight = method.model.named_parameters()["1.weight"].data.reshape(-1)
                weight.view(np.uint32)[3] ^= 1  # the lowest bit of its mantissa
            before = comm.trace.sent.messages
            method.step(Batches(DATA, 6)[step])
            sent = comm.trace.sent.messages - before
            assert sent == method.cost(Batches(DATA, 6)[step], comm.machine).messages[comm.rank]

    with pytest.raises(Disagreement, match=r"after step 4 .*weight on rank 1 is not what"):
        run(main)


def test_debug_mode_compares_the_replicas_after_every_step(monkeypatch):
    monkeypatch.setenv("MINIDIST_DEBUG", "1")

    def main(comm):
        method = make(comm)
        if comm.rank == 1:
            method.model.named_parameters()["1.weight"].data.reshape(-1)[3] += 1
        method.step(Batches(DATA, 6)[0])

    with pytest.raises(Disagreement, match=r"after step 1 .*weight on rank 1 is not what"):
        run(main)


def spoilt(step):
    """A batch of which one sample, of the last rank, is NaN."""
    inputs = DATA.inputs.copy()
    inputs[5] = np.nan if step == 1 else inputs[5]
    return Dataset("noise", inputs, DATA.targets, 3).batch(np.arange(6))


@pytest.mark.parametrize("kind", [DataParallel, Zero3, Pipeline, ParameterServer, LocalSGD])
def test_all_ranks_raise_in_the_step_in_which_one_has_nan(kind):
    seen = []

    def main(comm):
        method = make(comm, kind)
        for step in range(3):
            try:
                method.step(spoilt(step))
            except NotFinite as error:
                assert "the loss of step 1 is nan" in str(error)
                seen.append((comm.rank, step))
                return

    run(main, 2)
    assert seen == [(0, 1), (1, 1)] or seen == [(1, 1), (0, 1)]


@pytest.mark.parametrize("kind", [Serial, DataParallel, Zero1, Zero2, Zero3, Pipeline, LocalSGD])
def test_all_ranks_skip_that_step_and_train_as_if_it_had_not_been(kind):
    def main(comm, steps):
        method = make(comm, kind, rule=SGD(0.1, momentum=0.9))
        method.guard(not_finite="skip")
        for step in steps:
            method.step(spoilt(step))
        return method.parameters()

    ranks = 1 if kind is Serial else 2
    with_it, without = (
        run(lambda c: main(c, (0, 1, 2)), ranks),
        run(lambda c: main(c, (0, 2)), ranks),
    )
    for rank in range(ranks):
        for name, values in without[rank].items():
            np.testing.assert_array_equal(with_it[rank][name], values)


def test_going_on_is_a_choice_and_what_cannot_be_skipped_is_refused():
    def main(comm):
        method = make(comm)
        method.guard(not_finite="go on")
        assert np.isnan([method.step(spoilt(step)) for step in range(3)]).tolist() == [
            False, True, True,
        ]  # fmt: skip
        with pytest.raises(ValueError, match="choose one of"):
            method.guard(not_finite="ignore")
        with pytest.raises(Unsupported, match="ParameterServer: skip is not supported"):
            make(comm, ParameterServer).guard(not_finite="skip")
        with pytest.raises(Unsupported, match="Compressed: skip"):
            make(comm, Compressed, compressor=TopK).guard(not_finite="skip")
        with pytest.raises(Unsupported, match="no parameter is the same on all ranks"):
            make(comm, Zero3).guard(replicas_every=1)

    run(main, 2)
