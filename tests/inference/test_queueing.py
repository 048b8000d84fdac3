"""Erlang's formula at points known by hand, and against an engine on a clock of its own."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minidist.inference import Engine, Request, erlang_c, mean_wait, run
from minidist.models import gpt
from tests.inference.test_timing import Clock


def test_one_place_is_the_formula_of_mm1():
    assert abs(erlang_c(0.6, 1.0, 1) - 0.6) < 1e-15  # the share is ρ
    assert abs(mean_wait(0.6, 1.0, 1) - 0.6 / 0.4) < 1e-12  # ρ / (μ - λ)


@pytest.mark.parametrize("places", [2, 5, 8])
def test_several_places_are_the_sum_of_the_docstring(places):
    a = 0.8 * places
    top = a**places / math.factorial(places) / (1 - 0.8)
    whole = sum(a**k / math.factorial(k) for k in range(places)) + top
    assert abs(erlang_c(a / 3, 3.0, places) - top / whole) < 1e-12


def test_more_than_can_be_served_waits_for_ever():
    assert erlang_c(3, 1, 2) == 1 and mean_wait(2, 1, 2) == float("inf")
    assert erlang_c(0, 1, 2) == 0
    with pytest.raises(ValueError, match="at least one place, not 1, 1 and 0"):
        erlang_c(1, 1, 0)


def test_an_engine_waits_about_as_long_as_the_formula_says():
    """Random arrivals and lengths; each step takes a second, whatever is in the batch."""
    places, count, mean = 4, 2000, 12
    random = np.random.default_rng(0)
    engine = Engine(gpt(3, 128, 2, 1, 1).init(0), places)
    clock = Clock(engine)
    lengths = np.minimum(1 + random.geometric(1 / mean, count), 120)
    rate = 0.8 * places / lengths.mean()
    arrivals = np.cumsum(random.exponential(1 / rate, count)).tolist()
    asked = [Request((1,), int(length), temperature=0) for length in lengths]
    timing = run(engine, asked, arrivals, clock=clock, sleep=clock.sleep)
    # A step that has begun is waited for (half a second on average), then takes a second itself.
    waited = np.mean([times[0] for times in timing.times.values()]) - 1.5
    expected = mean_wait(rate, lengths.mean(), places)
    assert 0.7 * expected < waited < 1.3 * expected, (waited, expected)
