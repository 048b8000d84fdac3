"""The sweep of docs/federated.md: its statistics and its picture. ``make long`` runs it whole."""

from __future__ import annotations

import pytest

from minidist.privacy.skew import draw, mean_and_spread, sweep

ROWS = [
    {"alpha": alpha, "mu": mu, "seed": seed, "accuracy": [0.1, 0.5 + seed / 10, 0.7 + mu]}
    for alpha in (0.1, 10.0)
    for mu in (0.0, 0.1)
    for seed in (0, 1, 2)
]


def test_mean_and_spread_are_those_over_seeds_of_the_last_rounds():
    mean, spread = mean_and_spread(ROWS, 0.1, 0.1, last=2)
    assert (mean, spread) == pytest.approx((70.0, 5.0))  # 65, 70 and 75
    assert mean_and_spread(ROWS[:1], 0.1, 0.0, last=1) == pytest.approx((70.0, 0.0))


def test_the_picture_is_drawn(tmp_path):
    assert draw(ROWS, tmp_path / "skew.png").stat().st_size > 10_000


@pytest.mark.long
def test_the_sweep_learns(capsys):
    (row,) = sweep([100.0], [0.0], [0], 3)
    assert row["accuracy"][-1] > 0.75
    assert "alpha  100.0 mu  0.0 seed 0: " in capsys.readouterr().out
