"""Schedules as data: their formulas, and what makes one invalid."""

from __future__ import annotations

import pytest

from minidist.parallel.pipeline import cut
from minidist.parallel.schedules import (
    SCHEDULES,
    Backward,
    Forward,
    Recv,
    ScheduleError,
    Send,
    Step,
    gpipe,
    naive,
    price,
)


def free(schedule, stages, microbatches, forward=1.0, backward=2.0, message=0.0):
    """Price with equal stages; one byte is saved a microbatch."""
    return price(
        schedule,
        stages,
        microbatches,
        compute=lambda stage, work: forward if isinstance(work, Forward) else backward,
        nbytes=lambda stage, send: 1,
        message=lambda nbytes: message,
        saved=lambda stage, microbatch: 1,
    )


def idle(priced):
    return 1 - sum(priced.busy) / (len(priced.busy) * priced.seconds)


@pytest.mark.parametrize("p", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("m", [1, 2, 5, 32])
def test_bubble_is_the_formula(p, m):
    assert idle(free(naive, p, m)) == pytest.approx((p - 1) / p, abs=1e-12)
    assert idle(free(gpipe, p, m)) == pytest.approx((p - 1) / (m + p - 1), abs=1e-12)


@pytest.mark.parametrize("p", [1, 2, 4])
@pytest.mark.parametrize("m", [1, 3, 8])
def test_memory_is_the_formula(p, m):
    assert free(naive, p, m).peak_saved == [1] * p, "naive keeps one microbatch"
    assert free(gpipe, p, m).peak_saved == [m] * p, "GPipe keeps all of them"


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("p", [1, 2, 3, 4])
@pytest.mark.parametrize("m", [1, 2, 7])
def test_messages_are_the_formula(name, p, m):
    expected = [
        (m if stage < p - 1 else 0) + (m + 1 if stage > 0 else 0)  # activations; gradients + loss
        for stage in range(p)
    ]
    assert free(SCHEDULES[name], p, m).messages == expected


def changed(change):
    return lambda stage, stages, m: change(list(gpipe(stage, stages, m)), stage)


def without(instruction):
    return changed(lambda work, stage: [other for other in work if other != instruction])


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (
            without(Send("activation", 1, 1)),
            r"stage 0 can never run Send\(what='activation', microbatch=2",
        ),
        (without(Recv("gradient", 0, 1)), r"stage \d can never run"),
        (without(Backward(2)), r"Step\(\) before Backward of microbatches \[2\]"),
        (without(Forward(1)), r"Backward\(microbatch=1\) has no Forward before it"),
        (
            changed(lambda work, stage: work[::-1] if stage == 1 else work),
            r"stage \d can never run",
        ),
        (
            changed(lambda work, stage: [w for w in work if not isinstance(w, Backward)]),
            r"Step\(\) before Backward of microbatches \[0, 1, 2, 3\]",
        ),
    ],
)
def test_a_broken_schedule_is_rejected_with_the_instruction(broken, message):
    with pytest.raises(ScheduleError, match=message):
        free(broken, 3, 4)


def test_step_is_the_last_thing_that_computes():
    for schedule in SCHEDULES.values():
        for stage in range(3):
            work = list(schedule(stage, 3, 4))
            assert work.count(Step()) == 1
            after = work[work.index(Step()) + 1 :]
            assert all(isinstance(item, (Send, Recv)) and item.what == "loss" for item in after)


def test_cut_is_even_and_leaves_no_stage_empty():
    assert cut([0, 8, 0, 4, 0, 4, 0, 1], 4) == [(0, 3), (3, 5), (5, 7), (7, 8)]
    assert cut([1, 1, 1, 1, 1, 1], 3) == [(0, 2), (2, 4), (4, 6)]
    assert cut([5, 1, 1, 1], 2) == [(0, 1), (1, 4)]
    assert cut([1, 2, 3], 1) == [(0, 3)]
    assert cut([0, 0, 0], 3) == [(0, 1), (1, 2), (2, 3)]
