"""The picture of ``compare``: what is drawn stays in its place, with few rows or many."""

from __future__ import annotations

import itertools

import pytest
from matplotlib.figure import Figure

from minidist.comm.trace import Event
from minidist.compare import panels


def row(name: str, losses: list[float], exact: bool = False) -> dict:
    return {"method": name, "variant": "", "exact": exact, "loss": losses}


@pytest.mark.parametrize("others", [0, 4, 25, 60])
@pytest.mark.parametrize("last", [0.5, 1e9, float("nan")])
def test_names_beside_the_losses_neither_overlap_nor_leave_the_panel(others, last):
    rows = [row("serial", [2.0, 0.5], exact=True)]
    rows += [row(f"m{index}", [2.0, last]) for index in range(others)]
    axes = Figure().add_subplot()
    panels.losses(axes, rows)
    heights = sorted(text.get_position()[1] for text in axes.texts)
    line = panels.TEXT / panels.losses_height(rows)
    assert len(heights) == others + 1
    assert heights[0] >= 0 and heights[-1] <= 1
    assert all(b - a > 0.99 * line for a, b in itertools.pairwise(heights))
    low, high = axes.get_ylim()
    assert low < 0.5 and 2.0 < high < 3  # one row that diverges does not flatten the others


def test_losses_that_are_nan_from_the_first_step_on_are_drawn():
    axes = Figure().add_subplot()
    nan = float("nan")
    panels.losses(axes, [row("serial", [nan, nan], exact=True), row("m", [nan, nan])])
    low, high = axes.get_ylim()
    assert low < high and len(axes.texts) == 2


def test_names_go_up_and_down_only_as_far_as_they_must():
    assert panels.spread([1, 1, 5], 1, 0, 9) == [1, 2, 5]
    assert panels.spread([1, 9, 9], 1, 0, 9) == [1, 8, 9]
    assert panels.spread([-3, -3], 1, 0, 9) == [0, 1]


def test_a_step_that_is_cut_off_ends_before_its_words():
    rows = [{"step_seconds": 1.0, "idle_fraction": 0.5}] * 3
    lines = [[[Event("compute", "forward", 0, 0.5), Event("wait", "", 0.5, length)]]
             for length in (1.0, 1.0, 50.0)]  # fmt: skip
    lines[2][0].append(Event("send", "", 50.0, 60.0))  # begins behind the end
    axes = Figure().add_subplot()
    panels.times(axes, rows, [0.0, 1.0, 2.0], lines)
    ends = [path.get_extents().x1 for bars in axes.collections for path in bars.get_paths()]
    assert max(ends) == pytest.approx(panels.LONGEST)
    words = [text.xy[0] for text in axes.texts if "idle" in text.get_text()]
    assert min(words) > 1.4 * max(ends)
