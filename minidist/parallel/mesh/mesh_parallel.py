"""Data, pipeline and tensor parallelism at once, on a mesh of ranks.

    MeshParallel(model, loss, optimizer, comm, mesh={"dp": 2, "pp": 2, "tp": 2})

               one stage                           what is sent along an axis
    dp 0       ranks 0 1  ──activations──▶  2 3    tp   sums of parts of a layer, in every layer
    dp 1       ranks 4 5  ──activations──▶  6 7    pp   activations and gradients, by microbatch
                                                   dp   gradients, once a step

Each axis is chosen independently:

    dp   which samples; how gradients are summed (``zero``, or any ``sync``)
    pp   which blocks, and in which order (``schedule``, ``microbatches``, ``recompute``)
    tp   which part of each layer (``plan``, ``sequence``, ``keep``)

The method is a ``Pipeline`` whose stages hold tensor-parallel blocks, and whose replicas sum their
gradients by a ``GradientSync``. This class only translates the arguments. Quantities of the *whole*
model need several axes:

    the loss           divided by the global number of targets; summed over dp
    the norm           each element counts once: one that tp cuts where it is, others on tp 0; a
                       tied one on its first stage, a sharded one on its owner; summed over dp (if
                       sharded), pp and tp
    tied parameters    cut the same way in both uses; their gradients are summed over the stages
    sequence cut       gradients of norms and biases are summed over tp, before dp
    states             serial names and shapes: any mesh loads what any other has saved

ZeRO accumulates over the microbatches in gradient memory for the whole stage, and sums once a step.
For Ψ parameters of a stage, e bytes, m microbatches and d replicas that is Ψe of memory and
Ψe(d - 1)/d sent. A reduce-scatter after each microbatch would keep Ψe/d and two blocks, but send m
times as much. Narayanan et al., arXiv 2104.04473.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from minidist.comm.comm import Comm
from minidist.nn.layers import Sequential
from minidist.nn.loss import Loss
from minidist.optim.optimizer import Optimizer
from minidist.parallel.data_parallel.all_reduce import AllReduce
from minidist.parallel.gradient_sync import Sync
from minidist.parallel.mesh.mesh import ORDER, check, describe
from minidist.parallel.pipeline.pipeline import Pipeline
from minidist.parallel.pipeline.schedules import Schedule
from minidist.parallel.pipeline.stages import Bounds
from minidist.parallel.tensor.part import TensorCut
from minidist.parallel.tensor.plan import Plan
from minidist.parallel.zero.accumulated import ReduceScatterUnits
from minidist.parallel.zero.gathered import GatheredUnits
from minidist.parallel.zero.stage1 import ReduceScatter

Lengths = Mapping[str, int]  # of axes, by name
ZERO: tuple[Sync, ...] = (AllReduce, ReduceScatter, ReduceScatterUnits, GatheredUnits)


class MeshParallel(Pipeline):
    """``mesh``: the lengths of the axes dp, pp and tp, whose product is the number of ranks; or a
    function from that number to the lengths.

    ``zero``: the stage of ZeRO over dp, 0 for none. ``sync``: in place of ``zero``, any
    ``GradientSync``. For the other arguments see ``Pipeline`` and ``TensorParallel``. Raises
    ValueError for lengths that do not fit, and for arguments that need a longer axis.
    """

    def __init__(
        self,
        model: Sequential,
        loss: Loss,
        optimizer: Optimizer,
        comm: Comm,
        seed: int = 0,
        mesh: Lengths | Callable[[int], Lengths] | None = None,
        zero: int = 0,
        sync: Sync | None = None,
        schedule: str | Schedule = "1f1b",
        microbatches: int = 1,
        bounds: Bounds | None = None,
        recompute: bool | str = False,
        plan: Plan | None = None,
        sequence: bool = False,
        keep: bool = False,
        overlap: bool = True,
        clip: float | None = None,
    ) -> None:
        asked = mesh(comm.size) if callable(mesh) else mesh
        lengths = dict.fromkeys(ORDER, 1) | check(dict(asked or {"dp": comm.size}))
        size = lengths["dp"] * lengths["pp"] * lengths["tp"]
        if size != comm.size:
            raise ValueError(
                f"MeshParallel: a mesh of {describe(lengths)} needs {size} ranks, and there are "
                f"{comm.size}"
            )
        if zero not in range(len(ZERO)):
            raise ValueError(f"MeshParallel: zero is a stage, 0 to 3, not {zero!r}")
        if zero and sync is not None:
            raise ValueError(
                f"MeshParallel: zero={zero} chooses a sync itself: pass one of the two"
            )
        if zero and lengths["dp"] == 1:
            raise ValueError(f"MeshParallel: zero={zero} shards over replicas, and dp is 1")
        if lengths["tp"] == 1 and (plan is not None or sequence) and not callable(mesh):
            raise ValueError("MeshParallel: plan and sequence cut over the tensor axis: tp is 1")
        super().__init__(
            model,
            loss,
            optimizer,
            comm,
            seed,
            schedule,
            microbatches,
            bounds,
            recompute=recompute,
            replicas=lengths["dp"],
            sync=ZERO[zero] if sync is None and lengths["dp"] > 1 else sync,
            clip=clip,
            tensor=(
                TensorCut(lengths["tp"], plan, sequence, keep, overlap)
                if lengths["tp"] > 1
                else None
            ),
        )
