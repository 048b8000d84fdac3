"""Plausible wrong methods, each of which the checks must reject.

A mutant patches one thing, as a tired programmer would have written it. If a mutant survives, it
is the checks that are wrong.
"""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest

from minidist import LocalWorld, launch
from minidist.collectives import central, ring
from minidist.collectives.shared import symmetric_memory
from minidist.comm.local.world import Deadlock
from minidist.data.batches import Batch
from minidist.engine.tensor import Deferred
from minidist.parallel.data_parallel import all_reduce
from minidist.parallel.data_parallel.data_parallel import DataParallel
from minidist.parallel.pipeline import executor, pipeline, schedules
from minidist.parallel.pipeline.pipeline import Pipeline
from tests.parallel.checks import Setting, check_equals_serial, check_predictions


def dropped_all_reduce(monkeypatch):
    monkeypatch.setattr(all_reduce, "all_reduce", lambda comm, array, algorithm: None)


def double_division(monkeypatch):
    def averaged(comm, array, algorithm):
        ring.all_reduce(comm, array)
        array /= comm.size

    monkeypatch.setattr(all_reduce, "all_reduce", averaged)


def ring_that_sends_whole_arrays(monkeypatch):
    def whole(comm, array, algorithm):
        travelling, arrived = array.copy(), array.copy()
        for _ in range(comm.size - 1):
            right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
            comm.sendrecv(travelling, right, arrived, left)
            comm.combine("sum", array, arrived)
            travelling, arrived = arrived, travelling

    monkeypatch.setattr(all_reduce, "all_reduce", whole)


def average_of_averages(monkeypatch):
    """Each shard's own mean, averaged over ranks: right only if shards are even."""
    monkeypatch.setattr(Batch, "count", lambda self, loss: max(1, len(self)))

    def averaged(comm, array, algorithm):
        ring.all_reduce(comm, array)
        array /= comm.size

    monkeypatch.setattr(all_reduce, "all_reduce", averaged)


def last_rank_not_summed(monkeypatch):
    def forgetful(comm, array, algorithm):
        if comm.rank == comm.size - 1:
            array = np.zeros_like(array)
        central.all_reduce(comm, array)

    monkeypatch.setattr(all_reduce, "all_reduce", forgetful)


def all_ranks_on_the_same_shard(monkeypatch):
    monkeypatch.setattr(
        Batch, "shard", lambda self, rank, size, shard=Batch.shard: shard(self, 0, size)
    )


def gradients_not_zeroed(monkeypatch):
    step = DataParallel.train_on

    def dirty(self, batch):
        monkeypatch.setattr(type(self.model), "zero_grad", lambda model: None)
        return step(self, batch)

    monkeypatch.setattr(DataParallel, "train_on", dirty)


def swapped_microbatches(monkeypatch):
    microbatches = Batch.microbatches
    calls = []

    def swapped(self, count):
        parts = microbatches(self, count)
        calls.append(1)
        return parts[::-1] if len(calls) % 3 == 0 else parts

    monkeypatch.setattr(Batch, "microbatches", swapped)


def last_microbatch_left_out(monkeypatch):
    def short(stage, stages, microbatches):
        yield from schedules.gpipe(stage, stages, microbatches - 1)

    monkeypatch.setitem(schedules.SCHEDULES, "gpipe", schedules.Schedule(short))


def receives_before_it_sends(monkeypatch):
    """Every stage waits for the gradient before it has sent the activation."""
    connected = pipeline.program

    def stuck(*arguments):
        instructions = connected(*arguments)
        sends = [item for item in instructions if isinstance(item, schedules.Send)]
        for send in sends:
            if send.what == "activation":
                late = max(
                    place
                    for place, item in enumerate(instructions)
                    if isinstance(item, schedules.Recv) and item.part == send.part
                )
                instructions.remove(send)
                instructions.insert(late, send)
        return instructions

    monkeypatch.setattr(pipeline, "program", stuck)


def both_halves_of_the_backward_at_once(monkeypatch):
    """Nothing is deferred: the weights' gradients come with the inputs'."""
    monkeypatch.setattr(executor, "defer_weight_gradients", lambda: nullcontext(Deferred()))


def weight_gradients_never_run(monkeypatch):
    monkeypatch.setattr(Deferred, "run", lambda self: self.clear())


def buffers_freed_too_early(monkeypatch):
    """An activation's memory is received into again while its backward still needs it."""
    recv = executor.Executor.recv

    def eager(self, what, microbatch, part):
        recv(self, what, microbatch, part)
        if what == "activation":
            self.free(microbatch, part)

    monkeypatch.setattr(executor.Executor, "recv", eager)


def loss_counted_on_every_microbatch_alone(monkeypatch):
    monkeypatch.setattr(Batch, "count", lambda self, loss: max(1, len(self)))


def symmetric_sum_dropped(monkeypatch):
    monkeypatch.setattr(symmetric_memory, "all_reduce", lambda comm, array: None)


def symmetric_loss_left_out(monkeypatch):
    true = symmetric_memory.all_reduce
    monkeypatch.setattr(symmetric_memory, "all_reduce", lambda comm, array: true(comm, array[:-1]))


def gradients_stay_private(monkeypatch):
    monkeypatch.setattr(symmetric_memory, "allocate", lambda comm, *of, like: np.zeros(*of))


def stage_built_from_another_seed(monkeypatch):
    init = Pipeline.__init__

    def other(self, *args, **options):
        init(self, *args, **options)
        self.model.init(self.seed + self.comm.rank)

    monkeypatch.setattr(Pipeline, "__init__", other)


MUTANTS = [
    ("data_parallel/ring", dropped_all_reduce),
    ("data_parallel/ring", double_division),
    ("data_parallel/ring", ring_that_sends_whole_arrays),
    ("data_parallel/ring", average_of_averages),
    ("data_parallel/ring", last_rank_not_summed),
    ("data_parallel/ring", all_ranks_on_the_same_shard),
    ("data_parallel/ring", gradients_not_zeroed),
    ("data_parallel/symmetric", symmetric_sum_dropped),
    ("data_parallel/symmetric", symmetric_loss_left_out),
    ("data_parallel/symmetric", gradients_stay_private),
    ("data_parallel/symmetric", gradients_not_zeroed),
    ("pipeline/gpipe", swapped_microbatches),
    ("pipeline/gpipe", last_microbatch_left_out),
    ("pipeline/gpipe", receives_before_it_sends),
    ("pipeline/zero_bubble_h1", both_halves_of_the_backward_at_once),
    ("pipeline/zero_bubble_v", weight_gradients_never_run),
    ("pipeline/gpipe", buffers_freed_too_early),
    ("pipeline/interleaved", swapped_microbatches),
    ("pipeline/gpipe", loss_counted_on_every_microbatch_alone),
    ("pipeline/gpipe", stage_built_from_another_seed),
]


@pytest.mark.parametrize(
    ("key", "mutant"), MUTANTS, ids=[f"{key}-{m.__name__}" for key, m in MUTANTS]
)
def test_mutant_is_rejected(key, mutant, monkeypatch):
    mutant(monkeypatch)

    def checks(comm):
        check_equals_serial(comm, key, Setting())
        check_predictions(comm, key, Setting())

    with pytest.raises((AssertionError, Deadlock, ValueError)) as rejection:
        launch(checks, 3, LocalWorld())
    print(f"{mutant.__name__}: {rejection.value}")
