"""Schedules as data: their formulas, and what makes one invalid."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import numpy as np
import pytest

from minidist import LocalWorld, launch
from minidist.comm.machine import Machine
from minidist.data import Batches, Dataset
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import SGD
from minidist.parallel import Pipeline
from minidist.parallel.pipeline.pricing import price, price_units
from minidist.parallel.pipeline.programs import program
from minidist.parallel.pipeline.prover import ScheduleError, most_microbatches, validate
from minidist.parallel.pipeline.schedules import (
    SCHEDULES,
    Backward,
    Forward,
    InputGradient,
    Post,
    Recv,
    Reduce,
    Schedule,
    Send,
    Step,
    WeightGradient,
    interleaved,
)
from minidist.parallel.pipeline.stages import cut
from minidist.parallel.pipeline.tally import Memory

SYNCHRONOUS = [name for name in SCHEDULES if name != "pipedream"]


def units(name, p, m, **times):
    schedule = SCHEDULES[name] if isinstance(name, str) else name
    return price_units(schedule, p, m, **times)


@pytest.mark.parametrize("p", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("m", [1, 2, 5, 32])
def test_idle_share_is_the_formula(p, m):
    assert units("naive", p, m).idle_fraction == pytest.approx((p - 1) / p, abs=1e-12)
    for name in ("gpipe", "1f1b", "pipedream"):
        idle = units(name, p, m).idle_fraction
        assert idle == pytest.approx((p - 1) / (m + p - 1), abs=1e-12), name


@pytest.mark.parametrize("p", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("v", [1, 2, 3])
def test_interleaved_waits_for_a_chunk_not_a_stage(p, groups, v):
    m = groups * p
    schedule = Schedule(partial(interleaved, chunks=v), chunks=v)
    got = units(schedule, p, m)
    assert got.idle_fraction == pytest.approx((p - 1) / (v * m + p - 1), abs=1e-12)
    # The bubble is (p - 1)/(v·m) of the ideal time: arXiv 2104.04473, section 2.2.2.
    assert got.seconds == pytest.approx(3 * m * (1 + (p - 1) / (v * m)), abs=1e-9)
    kept = [min(2 * (p - 1 - s) + (v - 1) * p + 1, v * m) for s in range(p)]
    assert got.peak_saved == (kept if v > 1 else [min(p - s, m) for s in range(p)]) or v == 1


@pytest.mark.parametrize("p", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("times", [(1, 1, 1), (1, 1.2, 0.8), (1, 1.5, 1)], ids=str)
def test_zero_bubble_h1_waits_a_third_and_keeps_as_1f1b(p, times):
    f, i, w = times
    m = 4 * p
    got = units("zero_bubble_h1", p, m, forward=f, input_gradient=i, weight_gradient=w)
    bubble = (p - 1) * (f + i - w)
    assert got.seconds <= m * (f + i + w) + bubble + 1e-9, "more than arXiv 2401.10241, table 2"
    if f == i == w:
        assert got.seconds == pytest.approx(m * (f + i + w) + bubble, abs=1e-9)
    assert max(got.peak_saved) == max(units("1f1b", p, m).peak_saved) == p


@pytest.mark.parametrize("p", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("extra", [0, 1, 5])
def test_zero_bubble_v_waits_only_for_its_first_microbatch(p, extra):
    m = 2 * p + extra
    got = units("zero_bubble_v", p, m)
    assert got.seconds == pytest.approx(3 * m + (p - 1) / 2, abs=1e-9)
    for stage, spans in enumerate(got.spans):
        assert spans[0].start == pytest.approx(stage / 2), "the first microbatch, chunk by chunk"
        inside = spans[-1].end - spans[0].start
        gap = inside - sum(span.end - span.start for span in spans)
        assert gap == pytest.approx(0, abs=1e-9), f"stage {stage} waits {gap} in between"
    assert max(got.peak_saved) <= 2 * p, "half stages: no more than 1F1B's p"


@pytest.mark.parametrize("p", [1, 2, 4])
@pytest.mark.parametrize("m", [1, 3, 8])
def test_memory_is_the_formula(p, m):
    assert units("naive", p, m).peak_saved == [1] * p, "naive keeps one microbatch"
    assert units("gpipe", p, m).peak_saved == [m] * p, "GPipe keeps all of them"
    for name in ("1f1b", "pipedream"):
        kept = [min(p - stage, m) for stage in range(p)]
        assert units(name, p, m).peak_saved == kept, "1F1B keeps what is on the way"


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("p", [1, 2, 3, 4])
@pytest.mark.parametrize("m", [1, 2, 7])
def test_messages_are_the_formula(name, p, m):
    """One for each microbatch and boundary between ranks, each way; and the loss."""
    schedule = SCHEDULES[name]
    stages = [schedule.stage(part, p) for part in range(p * schedule.chunks)]
    expected = [0] * p
    for left, right in pairwise(stages):
        if left != right:
            expected[left] += m
            expected[right] += m
    for stage in range(p):
        expected[stage] += stage != (p - 1 if stages[-1] == 0 else 0)
    assert units(name, p, m).messages == expected


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_size_can_run(name):
    """Also fewer microbatches than stages, and numbers that divide nothing."""
    for p in range(1, 7):
        for m in range(1, 14):
            price = units(name, p, m)  # validates
            assert price.seconds >= 3 * m, (p, m)  # no faster than the work of a rank


def test_one_message_under_way_hides_behind_computing():
    """A send costs nothing while its receiver still computes; a late one costs what is left."""
    free, slow = units("gpipe", 2, 8), units("gpipe", 2, 8, message=0.5)
    # The first activation and the last gradient are waited for; 7 of each, and the loss, hide.
    assert slow.seconds == pytest.approx(free.seconds + 2 * 0.5)


def changed(change, name="gpipe", p=3, m=4):
    """The programs of a schedule, one stage's after a change."""
    schedule = SCHEDULES[name]
    programs = [change(program(schedule, stage, p, m), stage) for stage in range(p)]
    return lambda: validate(programs, schedule, m)


def without(instruction, **options):
    return changed(lambda work, stage: [other for other in work if other != instruction], **options)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (
            without(Send("activation", 1, 1, 1)),
            r"stage 1 can never run Recv\(what='activation', microbatch=1.*stage 0 never sends",
        ),
        (without(Recv("gradient", 0, 1, 1)), r"stage 0: Backward\(microbatch=0.*no gradient"),
        (without(Recv("activation", 3, 0, 1)), r"stage 1: Forward\(microbatch=3.*no input"),
        (without(Post("activation", 3, 0, 1)), r"stage 1: Recv\(.*microbatch=3.*no Post"),
        (without(Backward(2)), r"stage 2: Send\(what='gradient', microbatch=2.*not computed"),
        (without(Forward(1)), r"Send\(what='activation', microbatch=1.*not computed yet"),
        (without(Step()), r"Step\(\) before the gradients of microbatches \[0, 1, 2, 3\]"),
        (
            changed(lambda work, stage: [*work[:2], *work[1:]]),
            r"stage 0: Send\(what='activation', microbatch=0.*comes a second time",
        ),
        (
            without(Recv("loss", -1, 1, -1)),
            r"stage 1: Send\(what='loss'.*never received by stage 0",
        ),
        (
            without(WeightGradient(1), name="zero_bubble_h1"),
            r"stage 0: Step\(\) before the gradients of microbatches \[1\]",
        ),
        (
            without(InputGradient(1), name="zero_bubble_h1", p=1),
            r"stage 0: WeightGradient\(microbatch=1, chunk=0\).*no InputGradient before it",
        ),
        (
            changed(lambda work, stage: [Forward(9), *work]),
            r"stage 0: Forward\(microbatch=9.*not within 4 microbatches",
        ),
    ],
)
def test_a_broken_program_is_rejected_with_the_instruction(broken, message):
    with pytest.raises(ScheduleError, match=message) as rejection:
        broken()
    print(rejection.value)


def test_a_deadlock_is_rejected():
    """Stage 0 wants a gradient before the forward that stage 1 needs to make it."""

    def order(stage, stages, microbatches):
        yield Forward(0)
        if stage == 0:
            yield Backward(0)
            yield Forward(1)
        else:
            yield Forward(1)
            yield Backward(0)
        yield Backward(1)

    with pytest.raises(ScheduleError, match=r"stage 0 can never run Recv.*waits itself"):
        price_units(Schedule(order), 2, 2)


def test_step_is_the_last_thing_that_computes():
    for name in SYNCHRONOUS:
        for stage in range(3):
            work = program(SCHEDULES[name], stage, 3, 4)
            assert work.count(Step()) == 1
            after = work[work.index(Step()) + 1 :]
            assert all(isinstance(item, (Send, Recv)) and item.what == "loss" for item in after)


def a_step_for_each_half(stage, stages, microbatches):
    """Two steps of the optimizer a batch."""
    for half in (range(microbatches // 2), range(microbatches // 2, microbatches)):
        yield from (Forward(microbatch) for microbatch in half)
        yield from (Backward(microbatch) for microbatch in half)
        yield Step()


def a_step_of_its_own(stage, stages, microbatches):
    """GPipe, which says itself when it steps: nothing else than GPipe."""
    yield from SCHEDULES["gpipe"].order(stage, stages, microbatches)
    yield Step()


def steps_too_early(stage, stages, microbatches):
    *before, last = SCHEDULES["gpipe"].order(stage, stages, microbatches)
    yield from [*before, Step(), last]


def one_stage_steps_twice(stage, stages, microbatches):
    yield from a_step_of_its_own(stage, stages, microbatches)
    if stage == 1:
        yield Step()


@pytest.mark.parametrize(
    ("order", "error"),
    [
        ("pipedream", r"stage 0 has 4 Step\(\) a batch: .* PipeDream keeps the old weights"),
        (a_step_for_each_half, r"stage 0 has 2 Step\(\) a batch"),
        (steps_too_early, r"Step\(\) before the gradients of microbatches \[3\]"),
        (one_stage_steps_twice, r"stage 1 has 2 Step\(\) and stage 0 has 1"),
    ],
)
def test_a_schedule_that_is_not_serial_training_is_refused_by_pipeline(order, error):
    schedule = order if isinstance(order, str) else Schedule(order)

    def run(comm):
        Pipeline(mlp((8, 7, 6, 5)), CrossEntropy(), SGD(0.1), comm, schedule=schedule)

    with pytest.raises(ScheduleError, match=error):
        launch(run, 3, LocalWorld())
    with pytest.raises(ScheduleError, match=error):  # one rank alone is no exception
        launch(run, 1 if "stage 1" not in error else 2, LocalWorld())


def test_a_schedule_may_say_itself_when_it_steps():
    """Tied gradients are summed and norms clipped before, and not after, that step."""
    work = program(Schedule(a_step_of_its_own), 1, 3, 4, ("replicas", "tied", "norm", "loss"))
    assert work == program(SCHEDULES["gpipe"], 1, 3, 4, ("replicas", "tied", "norm", "loss"))
    with pytest.raises(ScheduleError, match=r"'norm'.* comes after the last Step"):
        changed(lambda work, stage: [*work, Reduce("norm")])()


def test_ports_carry_one_message_at_a_time():
    """Two stages send to a third: the second message waits for the first."""
    machine = Machine("slow", latency=1.0, bandwidth=float("inf"))
    programs = [
        [Post("a", 0, 1, 0), Post("b", 0, 2, 0), Recv("a", 0, 1, 0), Recv("b", 0, 2, 0)],
        [Send("a", 0, 0, 0)],
        [Send("b", 0, 0, 0)],
    ]
    got = price(
        programs,
        machine,
        seconds=lambda item: 0.0,
        memory=lambda item: Memory(0),
    )
    assert got.seconds == 2.0


def test_cut_is_even_and_leaves_no_stage_empty():
    assert cut([0, 8, 0, 4, 0, 4, 0, 1], 4) == [(0, 3), (3, 5), (5, 7), (7, 8)]
    assert cut([1, 1, 1, 1, 1, 1], 3) == [(0, 2), (2, 4), (4, 6)]
    assert cut([5, 1, 1, 1], 2) == [(0, 1), (1, 4)]
    assert cut([1, 2, 3], 1) == [(0, 3)]
    assert cut([0, 0, 0], 3) == [(0, 1), (1, 2), (2, 3)]


@pytest.mark.parametrize(
    ("forward", "input_gradient", "weight_gradient"),
    [(1, 1, 1), (1, 2, 1), (2, 1, 1), (1, 1, 0.5), (2, 2, 1.5), (1, 2, 0.5)],
)
def test_what_zb_h1_and_1f1b_wait_for_halves_of_any_length(
    forward, input_gradient, weight_gradient
):
    """(p - 1)(F + I - W), if W is no longer than F and I, and (p - 1)(F + I + W)."""
    p, m = 4, 8
    units = forward, input_gradient, weight_gradient
    for name, sign in (("zero_bubble_h1", -1), ("1f1b", 1)):
        waits = price_units(SCHEDULES[name], p, m, *units).seconds - m * sum(units)
        expected = (p - 1) * (forward + input_gradient + sign * weight_gradient)
        assert waits == pytest.approx(expected, abs=1e-12), name


@pytest.mark.parametrize(("p", "m"), [(2, 3), (3, 4), (4, 6), (4, 10)])
def test_interleaving_waits_longer_where_the_stages_do_not_divide_the_microbatches(p, m):
    idle = price_units(SCHEDULES["interleaved"], p, m).idle_fraction
    assert idle > (p - 1) / (2 * m + p - 1) + 1e-3


def test_many_microbatches_have_tags_and_too_many_are_refused():
    """MPI promises tags up to 32767, and each microbatch takes two for each part of the model."""
    assert price_units(SCHEDULES["1f1b"], 8, 100).seconds == (100 + 8 - 1) * 3
    images = np.random.default_rng(0).standard_normal((100, 4))
    batch = Batches(Dataset("many", images, np.arange(100) % 3, 3), 100)[0]

    def train(comm, microbatches):
        method = Pipeline(mlp((4, 3, 3)), CrossEntropy(), SGD(0.1), comm, microbatches=microbatches)
        return method.step(batch), method.step(batch)

    many, few = (launch(lambda comm, m=m: train(comm, m), 2)[0] for m in (100, 2))
    assert many == pytest.approx(few, rel=1e-5)
    assert most_microbatches(8) == 2047
    with pytest.raises(ScheduleError, match=r"2048 microbatches of 8 parts .* at most 2047"):
        price_units(SCHEDULES["gpipe"], 8, 2048)
