"""Requests that share a batch get the answers that they would get alone."""

from __future__ import annotations

import numpy as np
import pytest
import strict

from minidist.compress import keep_largest, quantize_int8, quantize_weights, shrink
from minidist.engine import array as arrays
from minidist.engine.array import defaults
from minidist.inference import BlockPool, Engine, Refused, Request, generate
from minidist.models import gpt, mlp
from tests.inference.checks import CONTEXT, VOCABULARY, alone, model, requests

SMALLER = {
    "as trained": lambda m: m,
    "fewer heads": lambda m: shrink(m, keep_largest(m, {"1.attention": 2, "2.attention": 2})),
    "int8": lambda m: quantize_int8(m, [np.arange(24)[None] % 11]),
    "int4": lambda m: quantize_weights(m, 4, 3),
}


@pytest.mark.parametrize("kind", SMALLER)
def test_answers_are_those_of_each_request_alone(kind):
    """Greedy and drawn, of any lengths up to the whole context; in blocks of one and of five."""
    small = SMALLER[kind](model())
    asked = [Request((4,), 3, seed=7), *requests(7)]
    assert max(request.positions for request in asked) == CONTEXT
    expected = [alone(small, request) for request in asked]
    for at_once, block in ((5, 5), (3, 1)):
        engine = Engine(small, at_once, block=block)
        for request in asked:
            engine.submit(request)
        while engine.busy:
            engine.step()
            assert len(engine._running) <= at_once
        for number, request in enumerate(asked):
            answer = engine.answers[number]
            assert answer.tokens == expected[number], (number, request)
            assert answer.reason == "count"
        assert engine.pool.free == engine.pool.blocks


def test_three_hundred_requests_at_random_times_each_answered_or_refused_once():
    random = np.random.default_rng(1)
    engine = Engine(model(), at_once=6, blocks=20, block=4, waiting=12)
    asked = requests(300, seed=2, longest=CONTEXT + 2)  # some are too long
    arrivals = np.sort(random.integers(0, 400, 300))
    got, ended, refused, cancelled = {}, {}, {}, set()
    numbers = {}
    for step in range(100_000):
        for index in np.flatnonzero(arrivals == step):
            try:
                numbers[engine.submit(asked[index])] = index
            except Refused as reason:
                refused[index] = str(reason)
        if random.random() < 0.2 and numbers:
            number = int(random.choice(list(numbers)[-30:]))
            before = engine.answers[number].reason
            assert engine.cancel(number) == (not before)
            cancelled |= set() if before else {number}
        for event in engine.step():
            assert event.number not in ended and event.number not in cancelled
            got.setdefault(event.number, []).append(event.token)
            if event.reason:
                ended[event.number] = event.reason
        owned = sum(len(one.part.table) for one in engine._running)
        assert owned + engine.pool.free == engine.pool.blocks
        if step > 400 and not engine.busy:
            break
    assert len(refused) + len(ended) + len(cancelled) == 300
    assert len(refused) > 20 and len(cancelled) > 10 and len(ended) > 100
    assert any("waiting" in reason for reason in refused.values())
    assert any("context is 24" in reason for reason in refused.values())
    assert engine.pool.free == 20 and not set(ended) & cancelled
    for number in list(ended)[::20] + sorted(cancelled)[::4]:
        request, tokens = asked[numbers[number]], got.get(number, [])
        assert engine.answers[number].tokens == tokens
        assert tokens == alone(engine.model, request)[: len(tokens)]
        assert number in cancelled or len(tokens) == request.count


def test_requests_are_let_in_in_order_when_there_is_memory_for_the_whole_answer():
    engine = Engine(model(), at_once=8, blocks=6, block=4)
    long, short = Request((1,) * 10, 7), Request((2,), 2)  # 16 positions, 2 positions
    numbers = [engine.submit(request) for request in (long, long, short)]
    first = [event.number for event in engine.step()]
    assert first == numbers[:1], "the second needs 4 blocks and 2 are free; the third waits too"
    for _ in range(6):
        engine.step()
    assert [event.number for event in engine.step()] == numbers[1:]


def test_a_stop_token_ends_the_answer_and_is_its_last():
    whole = alone(model(), Request((3, 1), 12, temperature=0))
    stop = whole[3]
    (answer,) = generate(model(), [Request((3, 1), 12, temperature=0, stop=stop)])
    assert answer.tokens == whole[: whole.index(stop) + 1] and answer.reason == "stop"


def test_events_say_each_token_and_the_end():
    engine = Engine(model(), 2)
    first, second = engine.submit(Request((1,), 1)), engine.submit(Request((2, 3), 2))
    events = [engine.step(), engine.step(), engine.step()]
    told = [[(event.number, event.reason) for event in some] for some in events]
    assert told == [[(first, "count"), (second, "")], [(second, "count")], []]


def test_the_memory_of_the_cache_is_the_formula():
    engine = Engine(model("float32"), at_once=3, block=5)
    blocks = 3 * 5  # ⌈24 / 5⌉ blocks for each of three contexts
    assert engine.pool.blocks == blocks
    assert (
        engine.pool.nbytes == 2 * 2 * blocks * 5 * 4 * 3 * 4
    )  # 2 layers, 4 groups, d = 3, 4 bytes


def test_blocks_are_taken_and_given_back_once():
    pool = BlockPool(1, 1, 1, blocks=3, block=4)
    table = pool.take(9)
    assert sorted(table) == [0, 1, 2] and pool.free == 0
    with pytest.raises(MemoryError, match="1 blocks are needed and 0 are free"):
        pool.take(1)
    pool.give_back(table)
    with pytest.raises(ValueError, match="free already"):
        pool.give_back(table[:1])


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request((), 3), "prompt is empty"),
        (Request((1,), 0), "0 tokens are asked for"),
        (Request((1, 11), 3), r"tokens lie in \[0, 11\), found 1 to 11"),
        (Request((-1,), 3), "found -1 to -1"),
        (Request((1,) * 25, 1), "a prompt of 25 tokens does not fit into a context of 24"),
        (Request((1,) * 20, 6), "ask for at most 5"),
        (Request((1,), 1, temperature=-1), "temperature -1"),
        (Request((1,), 1, temperature=float("nan")), "temperature nan"),
        (Request((1,), 1, top_k=0), "top_k 0"),
        (Request((1,) * 9, 9), "17 positions do not fit into a cache of 16"),
    ],
)
def test_what_can_never_be_answered_is_refused_with_the_numbers(request_, words):
    engine = Engine(model(), blocks=4, block=4)
    with pytest.raises(Refused, match=words):
        engine.submit(request_)
    assert not engine.busy and not engine.answers


def test_wrong_models_and_settings_are_refused():
    with pytest.raises(TypeError, match="must be a GPT"):
        Engine(mlp((4, 3, 2)).init(0))
    with pytest.raises(TypeError, match="the same number of heads"):
        Engine(shrink(model(), keep_largest(model(), {"1.attention": 3})))
    with pytest.raises(ValueError, match="at least one sequence at once, not 0"):
        Engine(model(), 0)
    with pytest.raises(KeyError, match="no request 7"):
        Engine(model()).cancel(7)


def test_on_a_device_answers_are_those_of_the_host(monkeypatch):
    """On a stand-in with a GPU's manners: arrays stay where they belong."""
    monkeypatch.setitem(arrays.DEVICES, "strict", lambda: strict)
    asked, state, found = requests(6), model().state(), []
    for device in ("cpu", "strict"):
        with defaults(device=device):
            there = gpt(VOCABULARY, CONTEXT, 12, 2, 4).init(0, dtype="float64").load(state)
            found.append([answer.tokens for answer in generate(there, asked, at_once=3)])
    assert found[0] == found[1]
