"""``minidist plan pipeline``, and the pictures of what should be and what was."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from matplotlib.figure import Figure

from minidist import LocalWorld, Machine, launch
from minidist.cli import main
from minidist.data import Batches, Dataset
from minidist.nn import CrossEntropy, LayerNorm, Linear, Sequential
from minidist.optim import SGD
from minidist.parallel import Pipeline
from minidist.parallel.pipeline.pricing import price_units
from minidist.parallel.pipeline.schedules import SCHEDULES
from minidist.plan import draw, plan_pipeline
from minidist.plots.pipeline import COLOURS, draw_price, draw_run, measured_spans


@pytest.mark.slow
def test_the_command_prices_and_draws_every_schedule(tmp_path, capsys):
    out = str(tmp_path / "plan")
    status = main(["plan", "pipeline", "--stages", "4", "--microbatches", "8", "--out", out])
    printed = capsys.readouterr().out
    assert status == 0
    for name in ("naive", "gpipe", "1F1B", "interleaved", "zero bubble h1", "zero bubble v"):
        assert name in printed
    assert "27.3%" in printed, "GPipe idles (p - 1)/(m + p - 1) = 3/11"
    assert (tmp_path / "plan" / "pipeline.png").stat().st_size > 50_000


def test_every_schedule_has_one_row_on_one_time_axis(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path: drawn.append(self))
    plans = plan_pipeline(4, 8)
    draw(plans, 4, tmp_path / "plan.png")
    (figure,) = drawn
    assert len(figure.axes) == len(plans)
    for axes, plan in zip(figure.axes, plans, strict=True):
        assert axes.get_title(loc="left").startswith(f"{plan.label}: ")
    longest = max(plan.price.seconds for plan in plans if plan.name != "naive")
    assert {axes.get_xlim() for axes in figure.axes} == {(0.0, longest)}


def test_bad_sizes_are_refused(capsys):
    assert main(["plan", "pipeline", "--stages", "0"]) == 2
    assert "not 0 and 8" in capsys.readouterr().err


def test_plan_orders_the_schedules_from_most_to_least_idle():
    idle = {plan.name: plan.price.idle_fraction for plan in plan_pipeline(4, 8)}
    assert idle["naive"] > idle["gpipe"] == idle["1f1b"] > idle["interleaved"]
    assert idle["interleaved"] > idle["zero_bubble_h1"] > idle["zero_bubble_v"]


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "pipedream"])
def test_the_measured_picture_is_the_predicted_one(name):
    """Cell for cell: same computation, same begin, same end; drawn with the same colours.

    Stages are equal. Each begins with a norm, so that the first one too computes a gradient of its
    product's input. A part's forward is 2 · 4 · 8 · 8 FLOPs, as both halves of its backward.
    """
    schedule, p, flops = SCHEDULES[name], 3, 1e8
    machine = Machine(latency=0.0, bandwidth=float("inf"), flops=flops)
    unit = schedule.chunks * 2 * 4 * 8 * 8 / flops

    def run(comm):
        parts = p * schedule.chunks
        blocks = [block for _ in range(parts) for block in (LayerNorm(8), Linear(8, 8))]
        method = Pipeline(
            Sequential(*blocks, input_shape=(8,)),
            CrossEntropy(),
            SGD(0.1),
            comm,
            schedule=name,
            microbatches=5,
            bounds=[(2 * part, 2 * part + 2) for part in range(parts)],
        )
        comm.barrier()
        comm.trace.record, comm.trace.events = True, []
        start = comm.time()
        method.step(Batches(data, 20, 0)[0])
        comm.trace.computed(comm.time())
        return start, [e for e in comm.trace.events if e.start >= start]

    random = np.random.default_rng(0)
    data = Dataset("noise", random.standard_normal((20, 8), "f"), random.integers(0, 8, 20), 8)
    results = launch(run, p, LocalWorld(machine))
    price = price_units(schedule, p, 5)
    for stage, (start, events) in enumerate(results):
        got, expected = measured_spans(events), price.spans[stage]
        assert [span.instruction for span in got] == [span.instruction for span in expected]
        for one, other in zip(got, expected, strict=True):
            assert (one.start - start) / unit == pytest.approx(other.start, abs=1e-9)
            assert (one.end - start) / unit == pytest.approx(other.end, abs=1e-9)
    above, below = Figure().subplots(2)
    draw_price(above, price)
    draw_run(below, [events for _, events in results])
    assert len(above.collections) == len(below.collections) > 0
    assert above.get_xlim() == pytest.approx((0, price.seconds)), "as wide as the step is long"
    assert set(COLOURS.values()) == set(map(str.lower, COLOURS.values()))


def test_a_slow_message_shows_as_a_gap():
    plan = partial(plan_pipeline, 4, 8)
    for free, slow in zip(plan(), plan(message=0.5), strict=True):
        assert slow.price.seconds > free.price.seconds, free.name
