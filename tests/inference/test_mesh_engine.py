"""A model on several ranks gives each request the answer that it would get alone on one."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest

from minidist import launch
from minidist.compress import factor, quantize_weights
from minidist.inference import Arrivals, MeshEngine, Request, replicas, serve
from minidist.inference.cost import request_bytes
from minidist.models import gpt, sample
from minidist.nn import CrossEntropy
from minidist.parallel import Mesh
from minidist.parallel.tensor import TensorPart
from tests.inference.checks import (
    CONTEXT,
    VOCABULARY,
    alone,
    answers,
    check_answers,
    model,
    requests,
)
from tests.inference.test_engine import SMALLER

MESHES = [{"tp": 2}, {"pp": 2}, {"tp": 3}, {"pp": 3}, {"pp": 2, "tp": 2}, {"tp": 4}, {"pp": 4}]


def ranks_of(mesh):
    return math.prod(mesh.values())


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_answers_are_those_of_each_request_alone_and_bytes_the_formula(mesh):
    """Greedy and drawn, ragged, more requests than places; four heads on three ranks too."""
    asked = [*requests(8), *[Request((4,), 3)] * 5]
    launch(lambda comm: check_answers(comm, [mesh], model(), asked), ranks_of(mesh))


SMALL = {
    "fewer heads": (SMALLER["fewer heads"], {"pp": 2, "tp": 2}),
    "int8 in stages": (SMALLER["int8"], {"pp": 3}),
    "int4, two by two": (SMALLER["int4"], {"pp": 2, "tp": 2}),
    "int8 weights": (partial(quantize_weights, bits=8, group=3), {"tp": 4}),
}


@pytest.mark.parametrize("kind", SMALL)
def test_smaller_models_on_several_ranks(kind):
    make, mesh = SMALL[kind]
    small = make(model())
    launch(lambda comm: check_answers(comm, [mesh], small, requests(6)), ranks_of(mesh))


def test_codes_are_cut_and_not_computed_anew():
    """Each rank has half of the codes and of the scales; both halves are all of them."""
    small = quantize_weights(model(), 4, 3)

    def run(comm):
        return MeshEngine(small, Mesh(comm, tp=2)).model.state()

    halves, whole = launch(run, 2), small.state()
    for name, join in (("1.up.codes", np.hstack), ("1.up.scale", np.hstack),
                       ("2.down.codes", np.vstack), ("2.down.scale", np.vstack)):  # fmt: skip
        assert np.array_equal(join([half[name] for half in halves]), whole[name])


@pytest.mark.parametrize("mesh", [{"pp": 3}, {"dp": 2, "pp": 2}, {"dp": 2, "tp": 2}], ids=str)
def test_requests_that_are_cancelled_in_flight_or_too_long_disturb_no_other(mesh):
    """Each is answered or refused once, and nothing of a cancelled one comes after its end."""
    asked = requests(24, seed=4, longest=CONTEXT + 1)
    due = {0: asked[:9], 3: asked[9:]}
    gone = {1: [0], 2: [1, 4], 5: [10, 99], 7: [12, 13]}

    def source(step):
        return Arrivals(due.get(step, ()), gone.get(step, ())) if step < 8 else None

    def run(comm):
        told = []
        return *serve(comm, model(), source, told.append, 3, block=4, mesh=mesh), told

    (found, refused, told), *others = launch(run, ranks_of(mesh))
    assert set(found) | set(refused) == set(range(24)) and not set(found) & set(refused)
    assert refused and {answer.reason for answer in found.values()} == {"count", "cancelled"}
    for number, answer in found.items():
        assert answer.tokens == [event.token for event in told if event.number == number]
        expected = alone(model(), asked[number])
        assert answer.tokens == expected[: len(answer.tokens)]
        assert answer.reason == "cancelled" or answer.tokens == expected
    assert all(other == ({}, {}, []) for other in others)


def test_all_requests_are_cancelled_while_their_tokens_are_under_way(monkeypatch):
    engines = []

    class Kept(MeshEngine):
        def __init__(self, *args):
            super().__init__(*args)
            engines.append(self)

    monkeypatch.setattr(replicas, "MeshEngine", Kept)
    asked = [Request((1, 2), 9)] * 4

    def source(step):
        return [Arrivals(asked), Arrivals(), Arrivals((), range(4)), None][step]

    found, _ = launch(lambda comm: serve(comm, model(), source, mesh={"pp": 3}), 3)[0]
    assert [answer.reason for answer in found.values()] == ["cancelled"] * 4
    assert len(engines) == 3 and not any(engine.busy for engine in engines), "all was received"

    def run(comm):
        engine = MeshEngine(model(), Mesh(comm, pp=3))
        numbers = [engine.submit(request) for request in asked]
        engine.step()
        assert all(engine.cancel(number) for number in numbers)
        assert engine.busy, "their tokens are still to be received"
        assert engine.step() == [] and not engine.busy

    launch(run, 3)


def test_bytes_in_front_of_replicas_of_two_ranks():
    """Rank 0 tells each rank of a replica; the first rank of the other one sends tokens back."""
    asked, places = [Request((3, 1, 2), 6, seed=seed) for seed in range(6)], 2

    def run(comm):
        rounds = []

        def source(step):
            rounds.append(step)
            return Arrivals(asked if step == 0 else ()) if step < 40 else None

        before = comm.trace.sent.nbytes
        serve(comm, model(), source, at_once=places, mesh={"dp": 2, "tp": 2})
        return comm.trace.sent.nbytes - before

    sent = launch(run, 4)
    inside = launch(lambda comm: answers(comm, model(), asked, {"tp": 2})[2], 2)
    assert sent[1] + sent[3] == inside[1]  # both replicas together; these tell the front nothing
    front = sent[0] + sent[2] - inside[0] - 41 * 3 * 16 - 40 * 24 * places
    # A request of the first replica is told to one rank, of the second to two: three each.
    assert front == request_bytes(asked[:3]) + 2 * request_bytes(asked[3:])


def test_a_model_that_is_cut_can_be_sampled_from():
    """``sample`` on every rank: cached keys of own heads, and logits of all ranks' tokens."""

    def run(comm):
        part = TensorPart(gpt(VOCABULARY, CONTEXT, 12, 2, 4), CrossEntropy(), comm)
        mine = part.model.init(0, dtype="float64").load(part.own(model().state()))
        return sample(mine, (3, 1, 4), 40, 0.9, seed=5).tolist()

    assert launch(run, 3) == [sample(model(), (3, 1, 4), 40, 0.9, seed=5).tolist()] * 3


@pytest.mark.parametrize(
    ("make", "mesh", "error", "words"),
    [
        (SMALLER["int8"], {"tp": 2}, TypeError, "block 1 has a Int8Linear, which is not cut"),
        (SMALLER["int4"], {"tp": 3}, ValueError, r"layer 1.down, cut for 3 ranks: .* divide 16"),
        (SMALLER["int4"], {"tp": 4}, ValueError, "9 outputs must be even: use 8 bits"),
        (
            lambda m: quantize_weights(m, 8, 6, where=lambda path: path.endswith("out")),
            {"tp": 4},
            ValueError,
            "layer 1.attention.out, cut for 4 ranks: .*groups of 6 do not divide 3 inputs",
        ),
        (lambda m: factor(m, 2), {"tp": 2}, TypeError, "which is not cut over ranks"),
        (lambda m: m, {"pp": 5}, ValueError, "5 stages need as many blocks, and the model has 4"),
        (lambda m: m, {"pp": 2, "dp": 3}, ValueError, "pp=2, dp=3 needs 6 ranks, and there are 2"),
    ],
)
def test_what_cannot_be_cut_is_refused_by_name(make, mesh, error, words):
    ranks, small = 2 if len(mesh) == 2 else ranks_of(mesh), make(model())
    with pytest.raises(error, match=words):
        launch(lambda comm: MeshEngine(small, Mesh(comm, **mesh)), ranks)
