"""Saving, and continuing with another method or on another number of ranks.

    4 ranks, ZeRO             any rank                       3 ranks, data parallel
    ▏▏▏▏  their shards  ──▶  state(): by parameter,  ──▶    each rank takes its part
                              of serial shape                of every array

Shards depend on the number of ranks; names and shapes do not. So ``Method.state`` gathers every
array of parameters and of optimizer state, cuts it into parameters, and names each piece:

    parameters/2.weight   optimizer/mean/2.weight   optimizer/square/2.weight   steps

(``steps``: of the optimizer; ``method/steps``: of the method, which key random draws.)
``Method.load`` cuts these arrays for the ranks that load. So ZeRO can load what serial training has
saved, and serial training what ZeRO has. Some methods keep more on each rank: errors of
compression, or a model that differs between ranks. These arrays are saved by rank and number of
ranks,

    rank 2 of 4/residual

and loaded if the number of ranks is the same. On another number of ranks they are dropped: errors
start at zero, and every rank starts with the same model.

All values are host arrays: ``safetensors.numpy.save_file(state, path)`` writes them. Gathering
sends K(p - 1)/p of the parameters' bytes for K arrays of optimizer state (one more for ZeRO's stage
3), and needs host memory for all of it.
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
    """Parameters that one optimizer steps, and the part of them that this rank steps."""

    parameters: dict[str, Parameter]
    slices: dict[str, slice]  # of each in the flat array that is cut into shards
    optimizer: Optimizer
    part: Part  # of it, with its state
    data: Array  # what this rank's optimizer steps: the shard, or the whole array
    shards: Sequence[slice] | None = None  # of all ranks; None if every rank has the whole array

    def gather(self, comm: Comm, array: Array) -> np.ndarray:
        """The whole array, on the host, from the ranks' shards. Every rank must call it."""
        if self.shards is None:
            return arrays.to_host(array)
        gathered = arrays.module_of(array).empty(self.shards[-1].stop, array.dtype)
        gathered[self.shards[comm.rank]] = array
        ring.all_gather(comm, gathered, self.shards)
        return arrays.to_host(gathered)

    def cut(self, comm: Comm, by_name: State) -> Array:
        """This rank's shard, from arrays by parameter; reads only the elements it needs."""
        own = flat_part(
            by_name, self.slices, None if self.shards is None else self.shards[comm.rank]
        )
        return arrays.module_of(self.data).asarray(own.astype(self.data.dtype, copy=False))


def save_optimizer(comm: Comm, shards: Sequence[OptimizerShard]) -> State:
    """The optimizer's state under serial names, on every rank. Every rank must call it."""
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
    """``part`` of the flat array that ``slices`` describes, from arrays by name; None: all of it.

    Of an array that is still in a file (``minidist.checkpoint``) only this part is read.
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
    """The entries whose name begins with ``prefix``, without the prefix."""
    return {n.removeprefix(prefix): value for n, value in state.items() if n.startswith(prefix)}


def check_state(state: State, model: Module, optimizer: Optimizer) -> None:
    """Raise if the state is of another model or another optimizer.

    KeyError: names differ. ValueError: a shape differs, such as of a transposed array.
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


# Arrays that only one rank has


def key(rank: int, size: int) -> str:
    return f"rank {rank} of {size}/"


def own(comm: Comm, state: State) -> State:
    """The saved arrays that only this rank had, if the number of ranks is the same."""
    return under(key(comm.rank, comm.size), state)


def check_own(comm: Comm, state: State, mine: dict[str, Array]) -> None:
    """Raise ValueError if an array that only this rank had has another shape now."""
    for name, values in own(comm, state).items():
        if name in mine and np.shape(values) != tuple(mine[name].shape):
            raise ValueError(
                f"load: {key(comm.rank, comm.size)}{name} is {np.shape(values)} in the state, and "
                f"this rank keeps {tuple(mine[name].shape)}"
            )


def gather_own(
    comm: Comm,
    own: dict[str, Array],
    copy_to_all: Callable[[np.ndarray, int], object] | None = None,
) -> State:
    """Every rank's ``own`` arrays, on every rank.

    The names, shapes and dtypes of a rank's arrays are sent first, as JSON.
    ``copy_to_all(array, rank)`` copies an array of one rank to all, in place; by default a
    broadcast.
    """
    copy = copy_to_all or (lambda array, rank: central.broadcast(comm, array, root=rank))
    found: State = {}
    for rank in range(comm.size):
        here = {name: arrays.to_host(array) for name, array in own.items()}
        described = [(name, array.shape, array.dtype.str) for name, array in here.items()]
        text = np.frombuffer(json.dumps(described).encode(), np.uint8).copy()
        length = np.array([text.size])
        with suppress(RankLost):  # the arrays of a rank that has died are lost
            copy(length, rank)
            text = text if comm.rank == rank else np.empty(int(length[0]), np.uint8)
            copy(text, rank)
            for name, shape, dtype in json.loads(text.tobytes()):
                array = here[name].copy() if comm.rank == rank else np.empty(shape, dtype)
                copy(array.reshape(-1), rank)  # a view: messages must have a dimension
                found[key(rank, comm.size) + name] = array
    return found


def mean_of_ranks(kept: State, what: str) -> np.ndarray:
    """The mean of an array that several ranks have under the same name."""
    found = [array for name, array in kept.items() if name.split("/", 1)[1] == what]
    return np.mean(found, axis=0, dtype=found[0].dtype)


def mean_optimizer(kept: State, optimizer: Optimizer, model: Module) -> State:
    """The mean of the ranks' optimizer states, under serial names."""
    slices = parameter_slices(model)
    steps = max(int(array) for name, array in kept.items() if name.endswith("/steps"))
    found: State = {"steps": np.array(steps)}
    for slot in optimizer.slots if steps > 0 else ():
        mean = mean_of_ranks(kept, f"optimizer/{slot}")
        cut = by_parameter(mean, slices, model)
        found |= {f"optimizer/{slot}/{name}": value for name, value in cut.items()}
    return found


def own_replica(data: Array, optimizer: Optimizer) -> dict[str, Array]:
    """``own_arrays`` of a rank whose model and optimizer state differ from the other ranks'."""
    state = optimizer.only_part().state
    slots = {f"optimizer/{slot}": array for slot, array in state.items()}
    return {"parameters": data, "steps": np.array(optimizer.steps)} | slots
