"""Pipeline schedules as data: the order in which each stage computes, as a list of instructions.

A schedule is a function (stage, stages, microbatches) → instructions (``instructions.py``). It only
lists what a stage *computes*, in order. ``programs.py`` adds the messages that this order needs.

F is a forward, B a backward. B has two halves: I, the gradient of the input, for which the previous
stage waits; and W, the gradient of the weights, for which no stage waits. With p stages, m
microbatches and v chunks a stage (all stages equal, messages free, idle as a share of the step):

    schedule         idle                          activations kept by a stage, in microbatches
    naive            (p - 1)/p                     1
    gpipe            (p - 1)/(m + p - 1)           m                      arXiv 1811.06965, 2.3
    1f1b             (p - 1)/(m + p - 1)           min(p - stage, m)      arXiv 2104.04473, 2.2.1
    interleaved      (p - 1)/(v·m + p - 1)         up to p + (p - 1)/v    arXiv 2104.04473, 2.2.2
    zero_bubble_h1   (p - 1)/(3m + p - 1)          p                      arXiv 2401.10241, 2.1
    zero_bubble_v    (p - 1)/(6m + p - 1), m ≥ 2p  p                      arXiv 2401.10241, 6
    pipedream        as 1F1B until it drains       min(p - stage, m)      SOSP'19, section 3.3

The interleaved share holds if p divides m; otherwise it is larger. The zero-bubble shares hold for
F = I = W; ZB-V then waits only for its first microbatch, half a forward for each stage. In general
1F1B waits (p - 1)(F + I + W), and ZB-H1 (p - 1)(F + I - W) if W is at most F and at most I.

1F1B waits exactly as long as GPipe, but needs less *memory*. To wait less, a stage needs other
work: another chunk of the model (interleaved), or weight gradients that were deferred (zero
bubble).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from minidist.parallel.pipeline.instructions import (
    COMPUTE,
    Backward,
    Compute,
    Forward,
    InputGradient,
    Instruction,
    Post,
    Recv,
    Reduce,
    Send,
    Step,
    WeightGradient,
)

__all__ = [
    "COMPUTE",
    "SCHEDULES",
    "Backward",
    "Compute",
    "Forward",
    "InputGradient",
    "Instruction",
    "Post",
    "Recv",
    "Reduce",
    "Schedule",
    "Send",
    "Step",
    "WeightGradient",
]


Order = Callable[[int, int, int], Iterator[Compute | Step]]


@dataclass(frozen=True)
class Schedule:
    """An order of computations, and the assignment of the model's parts to stages.

    Each of p stages holds ``chunks`` parts of the model. Chunk c of stage s is part c·p + s, so the
    parts pass through all stages ``chunks`` times. With ``vee`` every second pass is in reverse:
    the last stage of a pass is the first of the next.
    """

    order: Order
    chunks: int = 1
    vee: bool = False

    def part(self, stage: int, chunk: int, stages: int) -> int:
        """The number of the model's part that is this chunk of this stage."""
        within = stages - 1 - stage if self.vee and chunk % 2 else stage
        return chunk * stages + within

    def stage(self, part: int, stages: int) -> int:
        """The stage that holds a part."""
        chunk, within = divmod(part, stages)
        return stages - 1 - within if self.vee and chunk % 2 else within


# From the simplest to the one that idles least.


def naive(stage: int, stages: int, microbatches: int) -> Iterator[Compute]:
    """One microbatch at a time, forward and backward through all stages; the others idle."""
    for microbatch in range(microbatches):
        yield Forward(microbatch)
        yield Backward(microbatch)


def gpipe(stage: int, stages: int, microbatches: int) -> Iterator[Compute]:
    """All microbatches forward, one after the other; then all backward, in the same order."""
    for microbatch in range(microbatches):
        yield Forward(microbatch)
    for microbatch in range(microbatches):
        yield Backward(microbatch)


def one_f_one_b(stage: int, stages: int, microbatches: int) -> Iterator[Compute]:
    """Each backward as early as possible, so that a stage keeps few microbatches' activations."""
    warm_up = min(stages - 1 - stage, microbatches)
    for microbatch in range(warm_up):
        yield Forward(microbatch)
    for microbatch in range(microbatches - warm_up):
        yield Forward(warm_up + microbatch)
        yield Backward(microbatch)
    for microbatch in range(microbatches - warm_up, microbatches):
        yield Backward(microbatch)


def interleaved(stage: int, stages: int, microbatches: int, chunks: int = 2) -> Iterator[Compute]:
    """1F1B with several small chunks a stage: the next stage waits for a chunk, not for a stage.

    Microbatches are in groups of p. A group passes chunk 0 of all stages, then chunk 1, and so on.
    If the last group is smaller, its missing microbatches are left out of the same order.
    """
    groups = [range(first, first + stages) for first in range(0, microbatches, stages)]
    ahead = [(m, chunk) for group in groups for chunk in range(chunks) for m in group]
    back = [(m, chunk) for group in groups for chunk in reversed(range(chunks)) for m in group]
    warm_up = min(2 * (stages - 1 - stage) + (chunks - 1) * stages, len(ahead))
    order: list[Compute] = [Forward(*place) for place in ahead[:warm_up]]
    for place, returning in zip(ahead[warm_up:], back, strict=False):
        order += [Forward(*place), Backward(*returning)]
    order += [Backward(*returning) for returning in back[len(ahead) - warm_up :]]
    yield from (work for work in order if work.microbatch < microbatches)


def zero_bubble_h1(stage: int, stages: int, microbatches: int) -> Iterator[Compute]:
    """1F1B with deferred weight gradients: stage s computes them s microbatches later.

    Late stages finish their backwards first and would idle at the end, so they defer the most. No
    stage keeps more than p microbatches; in 1F1B the first stage keeps as many.
    """
    warm_up = min(stages - 1 - stage, microbatches)
    kept = min(stage, microbatches)
    for microbatch in range(warm_up):
        yield Forward(microbatch)
    for microbatch in range(microbatches):
        if warm_up + microbatch < microbatches:
            yield Forward(warm_up + microbatch)
        yield InputGradient(microbatch)
        if microbatch >= kept:
            yield WeightGradient(microbatch - kept)
    for microbatch in range(microbatches - kept, microbatches):
        yield WeightGradient(microbatch)


def zero_bubble_v(stage: int, stages: int, microbatches: int) -> Iterator[Compute]:
    """Two chunks a stage, in a V: down the stages, then up again, so stage 0 computes the loss.

    Stage 0 can therefore begin a microbatch's backward right after its forward. Every stage has F,
    I and W of two chunks, to fill the time in which it would idle. The order is for m ≥ 2p - 1;
    with fewer, the missing microbatches are left out of it.
    """
    for instruction in _vee(stage, stages, max(microbatches, 2 * stages - 1)):
        if instruction.microbatch < microbatches:
            yield instruction


def _vee(stage: int, stages: int, microbatches: int) -> Iterator[Compute]:
    down, up = 0, 1  # numbers of the chunks
    kinds = (Forward, InputGradient, WeightGradient)
    done = {(kind, chunk): 0 for kind in kinds for chunk in (down, up)}

    def run(kind: Any, chunk: int) -> Iterator[Compute]:
        """The next microbatch of this kind."""
        yield kind(done[kind, chunk], chunk)
        done[kind, chunk] += 1

    # Warm-up: the first microbatches go down the V, and up again when the stage would idle.
    for _ in range(2 * (stages - stage) - 1):
        yield from run(Forward, down)
    for _ in range(stage):
        yield from run(Forward, up)
        yield from run(Forward, down)
    for _ in range(stages - stage):
        yield from run(Forward, up)
        yield from run(InputGradient, up)
        yield from run(WeightGradient, up)
    # Steady: all six kinds of work in turn.
    while done[Forward, up] < microbatches:
        if done[Forward, down] < microbatches:
            yield from run(Forward, down)
        yield from run(InputGradient, down)
        yield from run(WeightGradient, down)
        yield from run(Forward, up)
        yield from run(InputGradient, up)
        yield from run(WeightGradient, up)
    # Cool-down: input gradients first, because other stages wait for them.
    for _ in range(stage):
        yield from run(InputGradient, down)
        yield from run(InputGradient, up)
    for _ in range(stages - stage):
        yield from run(InputGradient, down)
        yield from run(WeightGradient, down)
    for chunk in (up, down):
        while done[WeightGradient, chunk] < microbatches:
            yield from run(WeightGradient, chunk)


def pipedream(stage: int, stages: int, microbatches: int) -> Iterator[Compute | Step]:
    """1F1B with a step of the optimizer after every backward, without waiting for other stages.

    A microbatch's backward uses the weights that its forward used: see ``pipedream.py``.
    """
    for instruction in one_f_one_b(stage, stages, microbatches):
        yield instruction
        if isinstance(instruction, Backward):
            yield Step()


class Named(dict[str, Schedule]):
    """Schedules by name. "one_f_one_b", the name in version 0.1, also gives "1f1b"."""

    def __missing__(self, name: str) -> Schedule:
        if name == "one_f_one_b":
            return self["1f1b"]
        raise KeyError(name)


SCHEDULES = Named(
    {
        "naive": Schedule(naive),
        "gpipe": Schedule(gpipe),
        "1f1b": Schedule(one_f_one_b),
        "interleaved": Schedule(partial(interleaved, chunks=2), chunks=2),
        "zero_bubble_h1": Schedule(zero_bubble_h1),
        "zero_bubble_v": Schedule(zero_bubble_v, chunks=2, vee=True),
        "pipedream": Schedule(pipedream),
    }
)
