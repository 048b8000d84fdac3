"""``minidist plan pipeline``, and the pictures of what should be and what was."""

from __future__ import annotations

from functools import partial

import pytest
from matplotlib.figure import Figure

from minidist import LocalWorld, Machine, launch
from minidist.cli import main
from minidist.data import Batches
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import SGD
from minidist.parallel import Pipeline
from minidist.parallel.pipeline.schedules import SCHEDULES
from minidist.plan import draw, plan_pipeline
from minidist.plots.pipeline import COLOURS, draw_price, draw_run, measured_spans
from tests.parallel.checks import images


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
    """Cell for cell: same computation, same begin, same end; drawn with the same colours."""
    machine = Machine(latency=1e-6, bandwidth=1e9, flops=1e8)

    def run(comm):
        method = Pipeline(
            mlp((12, 9, 7, 6, 5)), CrossEntropy(), SGD(0.1), comm, schedule=name, microbatches=5
        )
        batch = Batches(images(), 20, 0)[0]
        comm.barrier()
        comm.trace.record, comm.trace.events = True, []
        start = comm.time()
        method.step(batch)
        comm.trace.computed(comm.time())
        events = [e for e in comm.trace.events if e.start >= start]
        return start, events, method.price(batch, machine)

    results = launch(run, 3, LocalWorld(machine))
    price = results[0][2]
    for stage, (start, events, _) in enumerate(results):
        got, expected = measured_spans(events), price.spans[stage]
        expected = [span for span in expected if span.end > span.start]
        assert [span.instruction for span in got] == [span.instruction for span in expected]
        for one, other in zip(got, expected, strict=True):
            assert one.start - start == pytest.approx(other.start, abs=1e-12)
            assert one.end - start == pytest.approx(other.end, abs=1e-12)
    above, below = Figure().subplots(2)
    draw_price(above, price)
    draw_run(below, [events for _, events, _ in results])
    assert len(above.collections) == len(below.collections) > 0
    assert above.get_xlim() == pytest.approx((0, price.seconds)), "as wide as the step is long"
    assert set(COLOURS.values()) == set(map(str.lower, COLOURS.values()))


def test_a_slow_message_shows_as_a_gap():
    plan = partial(plan_pipeline, 4, 8)
    for free, slow in zip(plan(), plan(message=0.5), strict=True):
        assert slow.price.seconds > free.price.seconds, free.name
