"""The part of a method that cuts one model over the ranks of a tensor axis.

    part = TensorPart(model, loss, comm)      each rank declares its part of every cut parameter
    part.model, part.loss                     this rank's model and loss
    part.complete(model)                      sums the gradients that are sums over the ranks
    part.check_targets(who, dataset)          refuses targets that need whole outputs
    part.elsewhere                            parameters that another rank counts in the norm
    part.whole(state), part.own(state)        from this rank's arrays to serial ones, and back

There are three kinds of parameters. Each element of a *cut* parameter is on one rank; its gradient
is complete there, and counts in the norm. A *whole* parameter and its gradient are the same on all
ranks, so it counts on one of them. Under sequence parallelism the gradient of a whole parameter is
a *sum*: each rank has the summand of its positions.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial

import numpy as np

from minidist import nn
from minidist.collectives import ring
from minidist.comm.comm import Comm
from minidist.data.dataset import Dataset
from minidist.engine.array import module_of
from minidist.nn.loss import Loss
from minidist.optim.optimizer import Optimizer, Reduce
from minidist.parallel.blocks import is_list_of_blocks
from minidist.parallel.model_costs import parameter_count
from minidist.parallel.state import State, under
from minidist.parallel.tensor.axis import Axis
from minidist.parallel.tensor.convert import convert, summed_over_sequence
from minidist.parallel.tensor.ends import CutHead, VocabularyCrossEntropy
from minidist.parallel.tensor.layers import ColumnParallel
from minidist.parallel.tensor.plan import Plan, chosen, cuts_of


class TensorPart:
    """One model over the ranks of ``comm``. ``plan``: patterns, as in ``plan.chosen``.

    Raises TypeError for a model that is not a list of blocks, ValueError for a plan that cannot be.
    """

    def __init__(
        self,
        model: nn.Sequential,
        loss: Loss,
        comm: Comm,
        plan: Plan | None = None,
        sequence: bool = False,
        keep: bool = False,
        overlap: bool = True,
    ) -> None:
        if not is_list_of_blocks(model):
            raise TypeError(
                "tensor parallelism cuts layers that it finds in a list of blocks, and a "
                f"{type(model).__name__} has a forward of its own: write it as Sequential(block, "
                "block, ...), or use a method that does not cut it, such as DataParallel or Zero3"
            )
        self.comm, self.serial = comm, model
        self.plan = chosen(model, comm.size, plan)
        self.cuts = cuts_of(model, self.plan, comm.size)
        sequence = sequence and comm.size > 1
        self.sequence = sequence
        self.axes = [
            Axis(rank, comm.size, comm if rank == comm.rank else None, sequence, keep, overlap)
            for rank in range(comm.size)
        ]
        made = [convert(model, loss, self.cuts, axis) for axis in self.axes]
        self.models = [one for one, _ in made]  # by rank; declared only, for shapes and costs
        self.losses = [one for _, one in made]
        self.model, self.loss = made[comm.rank]
        summed = summed_over_sequence(model, self.cuts) if sequence else []
        self.summed = frozenset(summed)

    @property
    def even(self) -> bool:
        """Whether all ranks' parts have the same shapes."""
        return not self.uneven

    @property
    def uneven(self) -> str:
        """The name of the first parameter whose parts have different lengths, or ""."""
        for name, cut in self.cuts.items():
            if cut is not None and len({cut.length(rank) for rank in range(self.comm.size)}) > 1:
                return name
        return ""

    @property
    def elsewhere(self) -> frozenset[str]:
        """The parameters that another rank of the axis counts in the norm."""
        whole = [name for name, cut in self.cuts.items() if cut is None]
        return frozenset(whole if self.comm.rank else ())

    def check_targets(self, who: str, dataset: Dataset) -> None:
        """Raise ValueError if the classes are cut and the targets are not class numbers.

        Every rank raises it, before anything is sent. ``who``: the method, for the message.
        """
        targets = dataset.targets
        dtype = getattr(targets, "dtype", np.dtype(np.int64))
        if dtype.kind in "iu" or not isinstance(self.loss, VocabularyCrossEntropy):
            return
        blocks = self.model.blocks.values()
        *_, last = (block for block in blocks if isinstance(block, (ColumnParallel, CutHead)))
        mine = {id(parameter) for _, parameter in last.children()}
        names = [n for n, p in self.model.named_parameters().items() if id(p) in mine]
        raise ValueError(
            f"{who}: the plan cuts the classes of the model's output over {self.comm.size} ranks, "
            f"and the targets of {dataset.name} are {dtype}, shape {targets.shape}, not class "
            "numbers: probabilities of classes need all of them on one rank. Keep the last layer "
            f"whole, plan={dict.fromkeys(names, 'whole')}, or give integer targets"
        )

    # Gradients

    def complete(self, model: nn.Module, names: Collection[str] | None = None) -> None:
        """Sum the gradients that are sums over the ranks, by one all-reduce.

        ``names``: of which parameters; None: of all.
        """
        flat = model.flat
        here = self.to_sum(flat.slices, names)
        if not here:
            return
        xp = module_of(flat.grad)
        together = xp.concatenate([flat.grad[flat.slices[name]] for name in here])
        with self.comm.step("sum over the sequence"):
            ring.all_reduce(self.comm, together)
        start = 0
        for name in here:
            part = flat.slices[name]
            flat.grad[part] = together[start : start + part.stop - part.start]
            start += part.stop - part.start

    def to_sum(self, names: Collection[str], only: Collection[str] | None = None) -> list[str]:
        """Those of ``names`` whose gradients are sums over the ranks."""
        return [n for n in names if n in self.summed and (only is None or n in only)]

    def square_of_all(self, square: np.ndarray) -> None:
        """Sum squares of gradients over the ranks, in place."""
        ring.all_reduce(self.comm, square)

    def reduce_norms(self, names: Collection[str], sums: np.ndarray) -> None:
        """Sum squared norms (2, parameters) over the ranks; whole parameters count once."""
        for index, name in enumerate(names):
            if name in self.elsewhere:
                sums[:, index] = 0
        ring.all_reduce(self.comm, sums)

    # States

    def whole(self, state: State) -> State:
        """Serial arrays from this rank's parts. Every rank of the axis must call it."""
        names = [name for name in state if self.cuts.get(name) is not None]
        if self.comm.size == 1 or not names:
            return state
        dtype = state[names[0]].dtype
        sizes = [
            sum(int(np.prod(self._shape(name, rank))) for name in names)
            for rank in range(self.comm.size)
        ]
        ends = np.cumsum(sizes).tolist()
        parts = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
        gathered = np.empty(ends[-1], dtype)
        gathered[parts[self.comm.rank]] = np.concatenate([state[n].reshape(-1) for n in names])
        ring.all_gather(self.comm, gathered, parts)
        found = {
            n: np.empty(self._serial_shape(n), dtype) if n in names else array
            for n, array in state.items()
        }
        for rank, part in enumerate(parts):
            start = part.start
            for name in names:
                shape, cut = self._shape(name, rank), self.cuts[name]
                stop = start + int(np.prod(shape))
                assert cut is not None
                cut.put(gathered[start:stop].reshape(shape), rank, found[name])
                start = stop
        return found

    def own(self, state: State) -> State:
        """This rank's parts of serial arrays."""
        found: State = {}
        for name, array in state.items():
            cut = self.cuts.get(name)
            found[name] = array if cut is None else cut.take(array, self.comm.rank)
        return found

    def _serial_shape(self, name: str) -> tuple[int, ...]:
        return self.serial.named_parameters()[name].declared

    def _shape(self, name: str, rank: int) -> tuple[int, ...]:
        cut = self.cuts[name]
        shape = self._serial_shape(name)
        return shape if cut is None else cut.shape(shape, rank)

    # The formula

    def summed_length(self) -> int:
        """Elements of the gradients that are summed over the ranks."""
        named = self.model.named_parameters()
        return sum(named[name].size for name in self.summed)

    def parameter_counts(self) -> list[int]:
        return [parameter_count(model) for model in self.models]


def bind_norms(optimizer: Optimizer, tensor: TensorPart) -> None:
    """Make a layer-wise rule sum squared norms over the ranks that have parts of a parameter."""
    for part in optimizer.parts:
        part.reduce = partial(_reduce, tensor, part.slices or {}, part.reduce)


def _reduce(
    tensor: TensorPart, names: Collection[str], inner: Reduce | None, sums: np.ndarray
) -> None:
    """Sum over the shards, if there are any, and then over the tensor axis."""
    if inner is not None:
        inner(sums)
    tensor.reduce_norms(names, sums)


def whole_optimizer(part: TensorPart, state: State) -> State:
    """The optimizer's state in serial shapes, from the state of this rank's parts."""
    found: State = {name: value for name, value in state.items() if name == "steps"}
    slots = {name.split("/")[1] for name in state if name.startswith("optimizer/")}
    for slot in sorted(slots):
        prefix = f"optimizer/{slot}/"
        found |= {prefix + n: v for n, v in part.whole(under(prefix, state)).items()}
    return found


def own_optimizer(part: TensorPart, state: State) -> State:
    """This rank's parts of a serial optimizer's state; other entries unchanged."""
    found = dict(state)
    for name, value in state.items():
        if name.startswith("optimizer/"):
            _, _, parameter = name.split("/", 2)
            found[name] = part.own({parameter: value})[parameter]
    return found


@dataclass(frozen=True)
class TensorCut:
    """The length of a mesh's tensor axis, and the arguments of its ``TensorPart``."""

    ranks: int
    plan: Plan | None = None
    sequence: bool = False
    keep: bool = False
    overlap: bool = True

    def part(self, model: nn.Sequential, loss: Loss, comm: Comm) -> TensorPart:
        return TensorPart(model, loss, comm, self.plan, self.sequence, self.keep, self.overlap)
