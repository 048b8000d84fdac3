"""Replicas with one queue in front: the answers of one rank, and the bytes of the formula."""

from __future__ import annotations

import numpy as np
import pytest

from minidist import launch
from minidist.inference import Arrivals, serve
from minidist.inference.replicas import decode, encode
from minidist.inference.requests import Request
from tests.inference.checks import CONTEXT, alone, model, requests

AT_ONCE = 3


def script(count=30, seed=4):
    """What comes in which round: requests, of which some are too long, and cancellations."""
    random = np.random.default_rng(seed)
    asked = requests(count, seed, longest=CONTEXT + 1)
    rounds: dict[int, list] = {}
    for request, at in zip(asked, np.sort(random.integers(0, 25, count)), strict=True):
        rounds.setdefault(int(at), []).append(request)
    cancelled = {12: [3, 5], 20: [14, 999], 26: [25, 25]}
    last = max([*rounds, *cancelled])

    def source(step):
        if step > last:
            return None
        return Arrivals(rounds.get(step, []), cancelled.get(step, []))

    return asked, source


def play(comm):
    _, source = script()
    told = []
    answers, refused = serve(comm, model(), source, told.append, AT_ONCE, blocks=18, block=4)
    return answers, refused, told, comm.trace.sent.nbytes, comm.trace.sent.messages


@pytest.mark.parametrize("ranks", [1, 3])
def test_every_request_is_answered_or_refused_once_whatever_the_number_of_ranks(ranks):
    asked, _ = script()
    results = launch(play, ranks)
    answers, refused, told, *_ = results[0]
    assert len(answers) + len(refused) == len(asked) and not set(answers) & set(refused)
    assert len(refused) > 1 and all("context is 24" in reason for reason in refused.values())
    streamed: dict[int, list] = {}
    for event in told:
        streamed.setdefault(event.number, []).append(event.token)
    reasons = [answer.reason for answer in answers.values()]
    assert set(reasons) == {"count", "cancelled"} and 2 <= reasons.count("cancelled") <= 4
    for number, answer in answers.items():
        assert answer.tokens == streamed.get(number, [])
        expected = alone(model(), asked[number])
        assert answer.tokens == expected[: len(answer.tokens)]
        assert answer.reason == "cancelled" or answer.tokens == expected
    assert all(result[:3] == ({}, {}, []) for result in results[1:])


def test_bytes_are_those_of_the_formula():
    (*_, sent, messages), *others = launch(play, 3)
    rounds = others[0][4]
    assert rounds == others[1][4] > 20
    for *_, back, count in others:
        assert (back, count) == (rounds * 24 * AT_ONCE, rounds)
    # Headers in each round and at the end; what is more are payloads.
    payload = sent - 2 * (rounds + 1) * 16
    assert payload > 0 and payload % 8 == 0
    assert messages > 2 * (rounds + 1)
    # On one rank nothing is sent.
    assert launch(play, 1)[0][3:] == (0, 0)


def test_requests_and_cancellations_travel_as_numbers():
    one = Request((3, 1, 2), 9, 0.75, 5, 123456789, 7)
    other = Request((4,), 1)
    numbers = [*encode(6, one), -1, 5, *encode(8, other)]
    assert decode(numbers) == ([(6, one), (8, other)], [5])
