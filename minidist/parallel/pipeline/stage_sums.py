"""The sums of a step of a pipeline, over several groups of ranks.

over the tensor axis  gradients that are sums over a sequence (``TensorPart``), first
over the replicas     each chunk's gradients, by ``GradientSync``; the loss
over tied stages      the gradients of a parameter that several stages hold
over all stages       the squared norm of the gradient, in which each element counts once
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np

from minidist.collectives import ring
from minidist.comm.comm import Comm
from minidist.data.batches import Batch
from minidist.engine.array import Array
from minidist.nn.layers import Sequential
from minidist.nn.loss import Loss
from minidist.nn.module import Parameter, Shape
from minidist.parallel.gradient_sync import GradientSync
from minidist.parallel.in_order import names_in
from minidist.parallel.pipeline.layout import Layout
from minidist.parallel.tensor.part import TensorPart


@dataclass(frozen=True)
class OwnStage:
    """The stage that this rank runs: its layers, communicators and receive buffers."""

    layout: Layout
    index: int
    model: Sequential
    separated: list[tuple[Parameter, Parameter]]  # see shared_parameters.separate
    loss: Loss
    sync: GradientSync
    pipe: Comm  # the stages of this pipeline
    replicas: Comm | None  # the ranks that hold this stage, if there are several
    partners: Comm | None  # the stages of this pipeline that hold the tied parameters
    clip: float | None
    update: Callable[[], None]  # the optimizer's step
    draws_of: Callable[[Batch], AbstractContextManager[None]]  # keys a microbatch's random draws
    tensor: TensorPart | None = None  # if a tensor axis cuts this stage
    buffers: dict[Shape, list[Array]] = field(default_factory=dict)  # free, by shape


class StageSums:
    """Base of ``Executor``: the sums of one step."""

    stage: OwnStage
    layout: Layout
    comm: Comm
    separated: list[tuple[Parameter, Parameter]]  # later uses of parameters, not added yet
    to_sum: set[str]  # not summed over the tensor axis yet
    loss: np.ndarray
    norm: float | None  # of the whole gradient, before clipping
    completed: bool

    def reduce(self, what: str, chunk: int) -> None:
        stage = self.stage
        if what == "replicas":
            part = self.layout.chunk_range(stage.index, chunk)
            self.add_separated(part)
            self.sum_over_tensor(part)
            stage.sync.ready(part)
        elif what == "loss":
            assert stage.replicas is not None
            ring.all_reduce(stage.replicas, self.loss)
        elif what == "tied":
            self.sum_tied()
        else:
            self.clip()

    def add_separated(self, part: slice) -> None:
        """Add the gradients of later uses of the parameters in ``part``, if not yet added."""
        slices = self.stage.model.flat.slices
        for pair in list(self.separated):
            first, later = pair
            if part.start <= slices[first.name].start < part.stop:
                first.accumulate(later.grad)
                self.separated.remove(pair)

    def sum_over_tensor(self, part: slice) -> None:
        """Sum gradients of ``part`` over the tensor axis, where needed and not yet done."""
        if self.stage.tensor is not None and self.to_sum:
            names = self.to_sum.intersection(names_in(self.stage.model.flat.slices, part))
            self.stage.tensor.complete(self.stage.model, names)
            self.to_sum -= names

    def sum_tied(self) -> None:
        """Sum the gradients of tied parameters over the stages that hold them.

        If every replica gets the whole sum, this is done after it, so that all stages have the same
        bits. If replicas get shards, it is done before, because the stages' shards differ.
        """
        stage, flat = self.stage, self.stage.model.flat
        assert stage.partners is not None
        if not stage.sync.sharded:
            self.complete()
        with self.comm.step("sum tied gradients"):
            for name in self.layout.tied:
                ring.all_reduce(stage.partners, flat.grad[flat.slices[name]])

    def complete(self) -> None:
        """Wait until all gradients are summed over the replicas, once a step."""
        whole = slice(0, self.stage.model.flat.size)
        self.add_separated(whole)
        self.sum_over_tensor(whole)
        if not self.completed:
            self.completed = True
            self.stage.sync.finish()

    def gradient_norm(self) -> float:
        """The whole gradient's norm: each element counts on one stage and one tensor rank."""
        stage = self.stage
        elsewhere = set(self.layout.counted_elsewhere(stage.index))
        if stage.tensor is not None:
            elsewhere |= stage.tensor.elsewhere
        square = np.array([stage.sync.squared_norm(elsewhere)], np.float64)
        ring.all_reduce(stage.pipe, square)
        if stage.tensor is not None:
            stage.tensor.square_of_all(square)
        return float(np.sqrt(square[0]))

    def clip(self) -> None:
        """Scale the gradients so that the whole gradient's norm is at most ``clip``."""
        stage = self.stage
        assert stage.clip is not None
        self.complete()
        self.norm = self.gradient_norm()
        if self.norm > stage.clip:
            stage.sync.scale(stage.clip / self.norm)
