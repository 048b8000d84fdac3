"""Gradient synchronisation: the part of a method that sums gradients over replicas.

Replicas are ranks that hold the same part of a model (all of it, or one stage of a pipeline) and
compute its gradient on different samples. Before the optimizer steps, these gradients are summed.
A ``GradientSync`` says how:

    DataParallel(model, loss, optimizer, comm, sync=Buckets(bucket_mb=1))
    Pipeline(model, loss, optimizer, comm, replicas=2, sync=ReduceScatter())

    class                     when it sends, and what each replica has afterwards  in
    AllReduce                 at the end, the whole sum                            data_parallel/
    AllReducePerParameter     at the end, one all-reduce for each parameter        data_parallel/
    SymmetricMemory           at the end, in memory that all replicas share        data_parallel/
    Buckets                   while the backward runs, the whole sum               data_parallel/
    CompressedSum             at the end, an approximate sum               gradient_compression/
    ReduceScatter             at the end, the sum of its own shard (ZeRO 1)        zero/
    ReduceScatterUnits        while the backward runs, its own shards (ZeRO 2)     zero/
    ReduceScatterSlots        the same, with gradient memory for two blocks only   zero/
    GatheredUnits             the same; parameters are gathered when used (ZeRO 3) zero/

A method makes the same calls to each of them, in this order:

    begin(step)             the gradients are set to zero
      ... forward and backward of all microbatches but the last: gradients only accumulate ...
    last_backward(loss)     from here on, a gradient that is ready may be sent
      ... the last backward ...
    finish()                waits until the gradients are summed; returns the summed loss
    update(limit)           clips, steps the optimizer on this rank's part, gathers the other parts

To add another, write a subclass with three methods: ``finish`` sums; ``plan`` predicts messages,
bytes and time; ``memory`` predicts bytes. Everything else has a default here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from minidist.collectives.series import Series
from minidist.comm.comm import Comm
from minidist.comm.machine import Machine
from minidist.engine import array as arrays
from minidist.engine.array import Array
from minidist.engine.tensor import Tensor
from minidist.nn.module import Module
from minidist.optim.clip import clip_by_global_norm, norm_of
from minidist.optim.optimizer import Optimizer
from minidist.parallel.model_costs import frozen_count, parameter_count
from minidist.parallel.settings import Settings
from minidist.parallel.state import OptimizerShard, State


@dataclass(frozen=True)
class Replicas:
    """What the formulas need to know about ranks that hold the same part of a model.

    ``model`` may be only declared. ``pieces``: slices of its flat array whose gradients are
    complete at different times (see ``GradientSync.ready``); empty if all are complete at once.
    """

    model: Module
    size: int  # how many replicas
    itemsize: int  # bytes of a parameter
    optimizer: Optimizer
    clips: bool = False
    sums_loss: bool = True  # the loss is summed along with the gradients
    apart: frozenset[str] = frozenset()
    pieces: tuple[slice, ...] = ()
    passes: int = 2  # how often a step computes each block: forward and backward, per microbatch

    @property
    def nbytes(self) -> int:
        """Bytes of all trained parameters; their gradients have as many."""
        return parameter_count(self.model) * self.itemsize

    @property
    def frozen_bytes(self) -> int:
        """Bytes of all parameters that are not trained."""
        return frozen_count(self.model) * self.itemsize

    def all_pieces(self) -> list[slice]:
        return list(self.pieces) or [slice(0, parameter_count(self.model))]


class GradientSync(Settings):
    """Base class; by itself it sends nothing, for a rank without other replicas.

    One object belongs to one method on one rank. ``sharded``: after ``finish`` each replica has
    the sum of its own shard only; otherwise every replica has the whole sum.
    """

    sharded = False
    hooks_forward = False  # it runs the model's blocks itself, so a pipeline cannot use it
    whole_array = False  # shards are cut from the whole flat array, not from each block
    comm: Comm | None = None

    def bind(
        self,
        model: Module,
        optimizer: Optimizer,
        comm: Comm,
        seed: int = 0,
        sums_loss: bool = True,
        clips: bool = False,
        apart: Collection[str] = (),
        late: Collection[str] = (),
    ) -> None:
        """Initialise a declared ``model``, whose replicas are the ranks of ``comm``.

        ``apart``: names of parameters whose gradient the method completes itself, at the end of the
        step. ``late``: names of those whose gradient it completes after the last backward; it then
        calls ``ready``. Raises ValueError if this object has a model already.
        """
        if self.comm is not None:
            raise ValueError(
                f"this {type(self).__name__} has a model already: make a new one for each method, "
                "inside the function that runs on every rank"
            )
        self.comm, self.model, self.optimizer = comm, model, optimizer
        self.sums_loss = sums_loss
        self.apart, self.late = frozenset(apart), frozenset(late)
        self.loss = 0.0
        self.step = 0
        self.allocate(seed)
        self.replicas = Replicas(
            model, comm.size, self.itemsize, optimizer, clips, sums_loss, self.apart
        )

    def allocate(self, seed: int) -> None:
        """Allocate the model's arrays, and tell the optimizer what it steps."""
        slices = self.model.init(seed).flat.slices
        self.part = self.optimizer.part(slices)

    @property
    def itemsize(self) -> int:
        return self.model.flat.data.dtype.itemsize

    def clips(self, clips: bool) -> None:
        """Set whether the method clips from now on."""
        self.replicas = replace(self.replicas, clips=clips)

    # One step

    def begin(self, step: int) -> None:
        """Begin training step ``step``: set the gradients to zero."""
        self.step = step
        self.model.zero_grad()

    def forward(self, x: Array) -> Tensor:
        """The model's output."""
        return self.model(x)

    def run(self, part: Module, x: Any) -> Tensor:
        """The output of ``part``, some consecutive blocks of the model."""
        return part(x)

    def last_backward(self, loss: float = 0.0, part: slice | None = None) -> None:
        """The last backward of this step begins. ``loss`` is this rank's, over all microbatches.

        ``part``: the slice of the flat array whose last backward this is; None: all of it.
        """
        self.loss = loss

    def ready(self, part: slice) -> None:
        """The gradients in ``part`` of the flat array are complete; others are not yet.

        A pipeline calls this for each of its chunks. What is not sent now is sent by ``finish``.
        """

    def finish(self) -> float:
        """Wait until the gradients are summed; the loss, also summed if ``sums_loss``."""
        return self.loss

    def update(self, limit: float | None = None) -> None:
        """Clip the gradients to the norm ``limit`` (None: do not), then step the optimizer."""
        assert self.comm is not None
        flat = self.model.flat
        with self.comm.step("optimizer"):
            if limit is not None:
                clip_by_global_norm(flat.grad, limit)
            self.optimizer.step_parts([(self.part, flat.data, flat.grad)])

    # The norm, for methods that sum it over other ranks besides the replicas

    def squared_norm(self, without: Collection[str] = ()) -> float:
        """The squared norm of the summed gradient; each element is counted once.

        ``without``: names of parameters that another stage of the pipeline counts.
        """
        grad, slices = self.model.flat.grad, self.model.flat.slices
        if not without:
            return norm_of(grad) ** 2
        return sum(norm_of(grad[part]) ** 2 for n, part in slices.items() if n not in without)

    def scale(self, factor: float) -> None:
        """Multiply the summed gradient, or this replica's shard of it, by ``factor``."""
        self.model.flat.grad *= factor

    # What is kept

    def arrays(self) -> dict[str, list[Array]]:
        """The arrays that this rank keeps between steps, by kind."""
        return {
            "parameters": self.model.flat.arrays(),
            "gradients": [self.model.flat.grad],
            "optimizer": self.optimizer.arrays(),
        }

    def parameters(self) -> State:
        """This rank's whole model, on the host. Every replica must call it."""
        named = self.model.named_parameters()
        return {name: arrays.to_host(parameter.data).copy() for name, parameter in named.items()}

    def load_parameters(self, by_name: State) -> None:
        """Set the model's parameters and buffers."""
        self.model.load({name: np.asarray(values) for name, values in by_name.items()})

    def optimizer_shards(self) -> list[OptimizerShard]:
        """The parts of the flat array that this rank's optimizer steps: for saving and loading."""
        flat, named = self.model.flat, self.model.named_parameters()
        return [OptimizerShard(named, flat.slices, self.optimizer, self.part, flat.data)]

    def own_arrays(self) -> dict[str, Array]:
        """Arrays that only this rank has and that training needs to continue, by name."""
        return {}

    # The formulas, for any replicas: also for a part of the model that this rank does not hold

    def plan(self, of: Replicas, seconds: list[float], machine: Machine) -> Series:
        """Messages, bytes and busy seconds of a step; its duration, if nothing overlaps.

        ``seconds``: of forward and backward, by replica.
        """
        series = Series(machine, of.size)
        series.compute(seconds)
        return series

    def memory(self, of: Replicas) -> dict[str, list[int]]:
        """Bytes of ``arrays()`` by kind and replica."""
        slots = len(of.optimizer.slots)
        return {
            "parameters": [of.nbytes + of.frozen_bytes] * of.size,
            "gradients": [of.nbytes] * of.size,
            "optimizer": [slots * of.nbytes] * of.size,
        }

    def parameters_stepped(self, of: Replicas) -> list[int]:
        """How many parameters each of a rank's optimizers steps; layer-wise rules sum norms."""
        return [len(of.model.trained())]

    def rings(self, of: Replicas, part: slice) -> list[slice] | None:
        """The slices that ``ready(part)`` all-reduces by rings, if it does nothing else.

        None if it does something else: then a pipeline's time cannot be predicted by formula.
        """
        return None


Sync = GradientSync | Callable[[], GradientSync]


def make_sync(sync: Sync) -> GradientSync:
    """``sync`` itself, or the object that it makes. Raises TypeError for anything else."""
    made = sync if isinstance(sync, GradientSync) else sync() if callable(sync) else None
    if not isinstance(made, GradientSync):
        raise TypeError(
            f"sync is a GradientSync, such as Buckets(bucket_mb=1), or a function that makes "
            f"one, not {sync!r}"
        )
    return made
