"""What answers of many requests must fulfil, in either world."""

from __future__ import annotations

import numpy as np

from minidist.inference import Arrivals, MeshEngine, Request, serve
from minidist.inference.cost import bytes_of
from minidist.models import gpt, sample
from minidist.parallel import Mesh
from tests.compress.test_pruning import shifted

CONTEXT, VOCABULARY = 24, 11


def model(dtype="float64"):
    """In float64, so that no two logits are equal up to rounding."""
    return shifted(gpt(VOCABULARY, CONTEXT, 12, 2, 4).init(3, dtype=dtype)).eval()


def requests(count, seed=0, longest=CONTEXT):
    random = np.random.default_rng(seed)
    made = []
    for number in range(count):
        length = int(random.integers(1, longest - 2))
        prompt = tuple(random.integers(0, VOCABULARY, length).tolist())
        new = int(random.integers(1, longest + 2 - length))
        kind = ({"temperature": 0}, {"temperature": 0.8, "top_k": 5}, {"temperature": 1.3})
        made.append(Request(prompt, new, seed=number, **kind[number % 3]))
    return made


def alone(model, request):
    drawn = sample(
        model, request.prompt, request.count, request.temperature, request.top_k, request.seed
    )
    return drawn.tolist()


def answers(comm, small, asked, mesh, at_once=3):
    """All answers, the bytes that this rank has sent, and their formula."""
    engine = MeshEngine(small, Mesh(comm, **mesh), at_once, block=5)
    before = comm.trace.sent.nbytes
    numbers = [engine.submit(request) for request in asked]
    while engine.busy:
        engine.step()
        assert len(engine._running) <= at_once
    assert engine.pool.free == engine.pool.blocks
    found = [engine.answers[number].tokens for number in numbers]
    return found, comm.trace.sent.nbytes - before, bytes_of(engine, asked)


def check_answers(comm, meshes, small, asked):
    """In either world: equal tokens, and bytes as the formula says."""
    expected = [alone(small, request) for request in asked]
    for mesh in meshes:
        found, sent, formula = answers(comm, small, asked, mesh)
        assert found == expected, mesh
        assert sent == formula, f"{mesh} rank {comm.rank}: {sent} bytes, formula {formula}"


def check_serving(comm, mesh):
    """Requests that come in two rounds, to all replicas of a mesh, one of them cancelled."""
    asked = requests(8, seed=6)

    def source(step):
        rounds = [Arrivals(asked[:5]), Arrivals(), Arrivals(asked[5:], [2])]
        return rounds[step] if step < len(rounds) else None

    found, refused = serve(comm, model(), source, at_once=2, mesh=mesh)
    if comm.rank == 0:
        assert not refused and len(found) == 8
        for number, answer in found.items():
            expected = alone(model(), asked[number])
            cut = expected[: len(answer.tokens)] if answer.reason == "cancelled" else expected
            assert answer.tokens == cut, (mesh, number)
