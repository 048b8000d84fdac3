"""Erlang's formula at points known by hand."""

from __future__ import annotations

import math

import pytest

from minidist.inference import erlang_c, mean_wait


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
