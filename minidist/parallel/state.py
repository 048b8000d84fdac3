"""Saving and going on later, with another method or on another number of ranks.

    4 ranks, ZeRO             any rank                       3 ranks, data parallel
    ▏▏▏▏  their shards  ──▶  state(): by parameter,  ──▶    each rank takes what it keeps
                              of serial shape                of every array

Shards depend on the number of ranks; names and shapes do not. So ``Method.state`` gathers every
array, parameters and the optimizer's, cuts it at parameters, and names each piece:

    parameters/2.weight   optimizer/mean/2.weight   optimizer/square/2.weight   steps

(``steps`` of the optimizer; ``method/steps`` of the method, by which random draws are keyed)

and ``Method.load`` cuts it again, for whoever loads. What serial training saved, ZeRO can load,
and the other way about. Some methods keep more on each rank: errors of compression, a model of its
own. That lies beside the rest, by rank and number of ranks,

    rank 2 of 4/residual

and is taken if there are as many ranks again. On another number of ranks training goes on without
it: nothing is owed, and every rank begins with the same model.

The dictionary holds host arrays alone: ``safetensors.numpy.save_file(state, path)`` writes it.
Gathering sends K(p - 1)/p of the parameters' bytes for K arrays of
optimizer state (one more for ZeRO's stage 3), and for the moment needs host memory for all of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from minidist.collectives import central, ring
from minidist.comm.comm import Comm, RankLost
from minidist.engine import array as arrays
from minidist.engine.array import Array
from minidist.nn.module import Module, Parameter
from minidist.optim.optimizer import Optimizer, Part
from minidist.parallel.model_costs import parameter_slices

State = dict[str, np.ndarray]


@dataclass(frozen=True)
class OptimizerShard:
    """Parameters that one optimizer steps, and which part of them it steps on this rank."""

    parameters: dict[str, Parameter]
    slices: dict[str, slice]  # of each in the flat array that is cut into shards
    optimizer: Optimizer
    part: Part  # of it, with its state
    data: Array  # what this rank's optimizer steps: the shard, or all
    shards: Sequence[slice] | None = None  # of all ranks; None if every rank has all

    def gather(self, comm: Comm, array: Array) -> np.ndarray:
        """All of an array of which each rank of ``comm`` has its shard, on the host."""
        if self.shards is None:
            return arrays.to_host(array)
        gathered = arrays.module_of(array).empty(self.shards[-1].stop, array.dtype)
        gathered[self.shards[comm.rank]] = array
        ring.all_gather(comm, gathered, self.shards)
        return arrays.to_host(gathered)

    def cut(self, comm: Comm, by_name: State) -> Array:
        """This rank's shard of what ``gather`` gave, from its pieces; reads no others."""
        own = flat_part(
            by_name, self.slices, None if self.shards is None else self.shards[comm.rank]
        )
        return arrays.module_of(self.data).asarray(own.astype(self.data.dtype, copy=False))


def save_optimizer(comm: Comm, shards: Sequence[OptimizerShard]) -> State:
    """The optimizer's state by serial names, on every rank of ``comm``; each must call it."""
    found: State = {}
    for shard in shards:
        found["steps"] = np.array(shard.optimizer.steps)
        for slot, array in shard.part.state.items():
            whole = shard.gather(comm, array)
            for name, where in shard.slices.items():
                shape = shard.parameters[name].declared
                found[f"optimizer/{slot}/{name}"] = whole[where].reshape(shape).copy()
    return found


def load_optimizer(comm: Comm, shards: Sequence[OptimizerShard], state: State) -> None:
    """Give every optimizer its shard of the saved ``state``."""
    for shard in shards:
        shard.optimizer.prepare(shard.part, shard.data)
        shard.optimizer.steps = int(state["steps"])
        for slot, array in shard.part.state.items():
            if state["steps"] > 0:
                array[...] = shard.cut(comm, under(f"optimizer/{slot}/", state))


def flat_part(by_name: State, slices: dict[str, slice], part: slice | None) -> np.ndarray:
    """Part of the flat array in which these arrays lie one behind the other; None: all of it.

    An array that is still in a file (``minidist.checkpoint``) is read in that part alone.
    """
    found = [np.empty(0)] if not slices else []
    for name, where in slices.items():
        low = where.start if part is None else max(where.start, part.start)
        high = where.stop if part is None else min(where.stop, part.stop)
        if low < high or not found:
            here = slice(low - where.start, max(low, high) - where.start)
            found.append(np.asarray(by_name[name].reshape(-1)[here]))
    return np.concatenate(found)


def under(prefix: str, state: State) -> State:
    """The entries whose name begins with ``prefix``, by the rest of it."""
    return {n.removeprefix(prefix): value for n, value in state.items() if n.startswith(prefix)}


def check_state(state: State, model: Module, optimizer: Optimizer) -> None:
    """Raise if the state is of another model or another optimizer.

    KeyError: other names. ValueError: an array of another shape, such as a transposed one.
    """
    named = model.named_parameters()
    shapes = {
        f"parameters/{n}": held.declared for n, held in (named | model.named_buffers()).items()
    }
    if "steps" in state and state["steps"] > 0:
        for slot in optimizer.slots:
            for name, held in model.trained().items():
                shapes[f"optimizer/{slot}/{name}"] = held.declared
    found = {name for name in state if not name.startswith("rank ")}
    if different := sorted((shapes.keys() | {"steps", "method/steps"}) ^ found):
        raise KeyError(f"load: the method and the state differ in {different}")
    for name, declared in shapes.items():
        if tuple(state[name].shape) != tuple(declared):
            raise ValueError(
                f"load: {name} is {tuple(state[name].shape)} in the state and {tuple(declared)} in "
                "the method"
            )


def own_names(model: Module) -> list[str]:
    """The names of a model's parameters and buffers."""
    return [*model.named_parameters(), *model.named_buffers()]


def own_buffers(model: Module) -> State:
    """A copy of a model's buffers, on the host."""
    return {n: arrays.to_host(buffer.data).copy() for n, buffer in model.named_buffers().items()}


def by_parameter(flat: np.ndarray, slices: dict[str, slice], model: Module) -> State:
    """A flat host array cut into the parameters of a model, copied."""
    named = model.named_parameters()
    return {n: flat[part].reshape(named[n].declared).copy() for n, part in slices.items()}


# What each rank keeps for itself


def key(rank: int, size: int) -> str:
    return f"rank {rank} of {size}/"


def own(comm: Comm, state: State) -> State:
    """What this rank of as many ranks had kept for itself."""
    return under(key(comm.rank, comm.size), state)


def check_own(comm: Comm, state: State, mine: dict[str, Array]) -> None:
    """Raise ValueError if what this rank had kept for itself has other shapes now."""
    for name, values in own(comm, state).items():
        if name in mine and np.shape(values) != tuple(mine[name].shape):
            raise ValueError(
                f"load: {key(comm.rank, comm.size)}{name} is {np.shape(values)} in the state, and "
                f"this rank keeps {tuple(mine[name].shape)}"
            )


def gather_own(
    comm: Comm, own: dict[str, Array], tell: Callable[[np.ndarray, int], object] | None = None
) -> State:
    """Every rank's ``own`` arrays, on every rank.

    The names, shapes and dtypes of a rank's arrays travel first, as text. ``tell(array, rank)``
    copies an array of one rank to all, in place; by default a broadcast.
    """
    tell = tell or (lambda array, rank: central.broadcast(comm, array, root=rank))
    found: State = {}
    for rank in range(comm.size):
        here = {name: arrays.to_host(array) for name, array in own.items()}
        said = [(name, array.shape, array.dtype.str) for name, array in here.items()]
        text = np.frombuffer(json.dumps(said).encode(), np.uint8).copy()
        length = np.array([text.size])
        with suppress(RankLost):  # what a rank that has died kept is gone
            tell(length, rank)
            text = text if comm.rank == rank else np.empty(int(length[0]), np.uint8)
            tell(text, rank)
            for name, shape, dtype in json.loads(text.tobytes()):
                array = here[name].copy() if comm.rank == rank else np.empty(shape, dtype)
                tell(array.reshape(-1), rank)  # in the same memory; messages have a dimension
                found[key(rank, comm.size) + name] = array
    return found


def mean_of_ranks(kept: State, what: str) -> np.ndarray:
    """The mean of an array that several ranks kept under the same name."""
    found = [array for name, array in kept.items() if name.split("/", 1)[1] == what]
    return np.mean(found, axis=0, dtype=found[0].dtype)


def mean_optimizer(kept: State, optimizer: Optimizer, model: Module) -> State:
    """The mean of the optimizer states that ranks kept, by serial names."""
    slices = parameter_slices(model)
    steps = max(int(array) for name, array in kept.items() if name.endswith("/steps"))
    found: State = {"steps": np.array(steps)}
    for slot in optimizer.slots if steps > 0 else ():
        mean = mean_of_ranks(kept, f"optimizer/{slot}")
        cut = by_parameter(mean, slices, model)
        found |= {f"optimizer/{slot}/{name}": value for name, value in cut.items()}
    return found


def own_replica(data: Array, optimizer: Optimizer) -> dict[str, Array]:
    """What a rank keeps whose model and optimizer state differ from the others'."""
    state = optimizer.only_part().state
    slots = {f"optimizer/{slot}": array for slot, array in state.items()}
    return {"parameters": data, "steps": np.array(optimizer.steps)} | slots
