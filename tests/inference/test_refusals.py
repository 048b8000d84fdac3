"""Requests that no rank could answer alike, and models that change under the cache."""

import numpy as np
import pytest

from minidist.engine.versions import ChangedError
from minidist.inference import Arrivals, BlockPool, Engine, Refused, Request, erlang_c, generate
from minidist.models import gpt, mlp, sample
from minidist.models.gpt import pick


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"prompt": (1.7, 2)}, "a token is a whole number, not 1.7"),
        ({"prompt": np.array([[1, 2]])}, r"a token is a whole number, not \[1, 2\]"),
        ({"prompt": "ab"}, "a tuple of tokens, not 'ab'"),
        ({"prompt": None}, "a tuple of tokens, not None"),
        ({"count": 2.5}, "number of tokens is a whole number"),
        ({"temperature": None}, "temperature is a number"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"temperature": float("inf"), "top_k": 2}, "temperature inf"),  # would draw no token
        ({"temperature": -1}, "temperature -1"),
        ({"top_k": 0}, "top_k 0 is too small"),
        ({"top_k": True}, "top_k is a whole number or None, not True"),
        ({"count": 0}, "0 tokens are asked for"),
        ({"prompt": []}, "the prompt is empty"),
        ({"top_k": 2.5}, "top_k is a whole number"),
        ({"seed": 0.5}, "the seed is a whole number"),  # sent as 0 to another rank
        ({"seed": 1 << 70}, "at most 64 bits"),
        ({"stop": 99}, "stop=99 is no token"),
        ({"stop": -1}, "stop=-1 is no token"),
    ],
)
def test_a_request_that_is_none_is_refused_with_the_reason(wrong, reason):
    engine = Engine(gpt(11, 8, 12, 1, 2).init(0))
    with pytest.raises(Refused, match=reason):
        engine.submit(Request(**({"prompt": (1, 2), "count": 3} | wrong)))
    assert not engine.busy
    with pytest.raises(TypeError, match="submit a Request, not a tuple"):
        engine.submit((1, 2))


def test_an_array_is_a_prompt():
    model = gpt(11, 8, 12, 1, 2).init(0)
    asked = [Request(np.array([1, 2]), 3), Request([1, 2], 3), Request((1, 2), 3)]
    first, *others = (answer.tokens for answer in generate(model, asked))
    assert all(other == first for other in others)


def test_a_list_that_changes_while_its_request_waits_does_not_matter():
    model, prompt = gpt(11, 8, 12, 1, 2).init(0), [1, 2]
    engine = Engine(model)
    number = engine.submit(Request(prompt, 3))
    prompt.clear()
    while engine.busy:
        engine.step()
    assert engine.answers[number].tokens == generate(model, [Request((1, 2), 3)])[0].tokens


def test_more_likely_tokens_than_the_vocabulary_has_are_all_of_them():
    model = gpt(11, 8, 12, 1, 2).init(0)
    some, every = generate(model, [Request((1, 2), 5, top_k=99), Request((1, 2), 5)])
    assert some.tokens == every.tokens


def test_a_request_that_is_cancelled_before_it_starts_has_no_token():
    engine = Engine(gpt(11, 8, 12, 1, 2).init(0))
    number = engine.submit(Request((1,), 3))
    assert engine.cancel(number) and not engine.cancel(number)
    assert engine.step() == [] and not engine.busy
    assert (engine.answers[number].tokens, engine.answers[number].reason) == ([], "cancelled")


def test_the_models_mode_stays_as_it_was():
    """Left in evaluation, it would train on without dropout."""
    model = gpt(11, 8, 12, 1, 2, dropout=0.5).init(0)
    model.blocks["0"].training = False
    modes = [module.training for module in model.named_modules().values()]
    expected = sample(model, (1, 2), 3, temperature=0.0)
    (answer,) = generate(model, [Request((1, 2), 3, 0.0)])
    assert answer.tokens == expected.tolist()
    assert [module.training for module in model.named_modules().values()] == modes


def test_weights_written_between_two_tokens_are_an_error():
    model = gpt(11, 8, 12, 1, 2).init(0)
    engine = Engine(model)
    number = engine.submit(Request((1, 2), 5))
    engine.step()
    model.load(gpt(11, 8, 12, 1, 2).init(7).state())
    with pytest.raises(ChangedError, match="1 requests are being answered"):
        engine.step()
    engine.cancel(number)
    engine.submit(Request((1, 2), 1))
    assert engine.step(), "nothing of the old weights is cached"


def test_a_model_without_finite_logits_draws_no_token():
    model = gpt(11, 8, 12, 1, 2).init(0)
    model.flat.data.fill(np.nan)
    for temperature in (0.0, 1.0):
        with pytest.raises(ArithmeticError, match="largest of 11 logits is nan"):
            generate(model, [Request((1, 2), 3, temperature)])


def test_a_draw_is_a_token_at_the_ends_of_what_can_be_drawn():
    logits = np.array([0.0, 3.0, -1.0, -np.inf])
    almost = np.nextafter(1, 0)
    assert pick(logits, 1e-320, None, almost) == 1  # the quotients overflow
    assert pick(logits, 1.0, 2, almost) == 1 and pick(logits, 1.0, None, almost) == 2
    assert pick(np.zeros(3), 1.0, 1, almost) == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda model: sample(model, np.array([[1, 2]]), 3), r"of one text, not int64 \(1, 2\)"),
        (lambda model: sample(model, [1.5, 2.0], 3), "tokens are integers"),
        (lambda model: sample(model, (1,), 3, temperature=float("nan")), "temperature nan"),
        (lambda model: sample(model, (1,), -1), "at least 0, not -1"),
        (lambda model: sample(model, (1,), 2.5), "count is a whole number, not 2.5"),
        (lambda model: sample(model, (1,), 1, seed=0.5), "the seed is a whole number"),
        (lambda model: sample(model, (1,), 1, float("inf"), 2), "temperature inf"),
        (lambda model: sample(model, (1,), 1, top_k=2.5), "top_k is a whole number"),
        (lambda model: Engine(gpt(11, 8, 12, 0, 2).init(0)), "at least one block"),
        (lambda model: gpt(11, 8, 12, 1, 0), "0 heads must divide"),
        (lambda model: gpt(11, 8, 12, 1, -2), "-2 heads must divide"),
        (lambda model: gpt(11, 8, 12, 1, 5), "5 heads must divide the width 12"),
        (lambda model: gpt(0, 8, 0), "vocabulary=0, width=0 must be at least 1"),
        (lambda model: Engine(model, True), "not True"),
        (lambda model: Engine(model, waiting=1.5), "1.5 requests may wait"),
        (lambda model: sample(mlp((3, 4)).init(0), (1,), 1), "must be a GPT"),
        (lambda model: Engine(model, at_once=1.5), "not 1.5"),
        (lambda model: Engine(model, block=0), "both must be integers"),
        (lambda model: Engine(model, waiting=-1), "-1 requests may wait"),
        (lambda model: BlockPool(1, 1, 2, 4).give_back([77]), "no table of one sequence"),
        (lambda model: BlockPool(1, 1, 2, 4).take(-5), "-5 positions"),
        (lambda model: erlang_c(float("nan"), 1.0, 2), "not nan"),
        (lambda model: erlang_c(1.0, 1.0, 2.5), "2.5"),
    ],
)
def test_settings_that_are_none_are_refused(wrong, message):
    with pytest.raises((ValueError, TypeError), match=message):
        wrong(gpt(11, 8, 12, 1, 2).init(0))


def test_a_source_of_anything_else_is_refused():
    from minidist import launch
    from minidist.inference import serve

    def run(comm):
        return serve(comm, gpt(11, 8, 12, 1, 2).init(0), lambda step: [Request((1,), 2)])

    with pytest.raises(TypeError, match="source must return Arrivals"):
        launch(run, 1)
    assert Arrivals().requests == ()
