"""Saving and going on later, with another method or on another number of ranks.

    4 ranks, ZeRO             any rank                       3 ranks, data parallel
    ▏▏▏▏  their shards  ──▶  state(): by parameter,  ──▶    each rank takes what it keeps
                              of serial shape                of every array

Shards depend on the number of ranks; names and shapes do not. So ``Method.state`` gathers every
array, parameters and the optimizer's, cuts it at parameters, and names each piece:

    parameters/2.weight   optimizer/mean/2.weight   optimizer/square/2.weight   steps

and ``Method.load`` cuts it again, for whoever loads. What serial training saved, ZeRO can load,
and the other way about. The dictionary holds host arrays alone: ``safetensors.numpy.save_file(
state, path)`` writes it. Gathering sends K(p - 1)/p of the parameters' bytes for K arrays of
optimizer state (one more for ZeRO's stage 3), and for the moment needs host memory for all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minidist.collectives import ring
from minidist.comm.comm import Comm
from minidist.engine import array as arrays
from minidist.engine.array import Array
from minidist.nn.module import Parameter
from minidist.optim.optimizer import Optimizer

State = dict[str, np.ndarray]


@dataclass(frozen=True)
class OptimizerShard:
    """Parameters that one optimizer steps, and which part of them it steps on this rank."""

    parameters: dict[str, Parameter]
    slices: dict[str, slice]  # of each in the flat array that is cut into shards
    optimizer: Optimizer
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
        """This rank's shard of what ``gather`` gave, from its pieces."""
        flat = np.concatenate([by_name[name].reshape(-1) for name in self.slices])
        own = flat if self.shards is None else flat[self.shards[comm.rank]]
        return arrays.module_of(self.data).asarray(own.astype(self.data.dtype, copy=False))


def save_optimizer(comm: Comm, shards: Sequence[OptimizerShard]) -> State:
    """The optimizer's state by serial names, on every rank of ``comm``; each must call it."""
    found: State = {}
    for shard in shards:
        found["steps"] = np.array(shard.optimizer.steps)
        for slot in shard.optimizer.state:
            whole = shard.gather(comm, shard.optimizer.state[slot])
            for name, where in shard.slices.items():
                shape = shard.parameters[name].declared
                found[f"optimizer/{slot}/{name}"] = whole[where].reshape(shape).copy()
    return found


def load_optimizer(comm: Comm, shards: Sequence[OptimizerShard], state: State) -> None:
    """Give every optimizer its shard of the saved ``state``."""
    for shard in shards:
        shard.optimizer.prepare(shard.data)
        shard.optimizer.steps = int(state["steps"])
        for slot, array in shard.optimizer.state.items():
            if state["steps"] > 0:
                array[...] = shard.cut(comm, under(f"optimizer/{slot}/", state))


def under(prefix: str, state: State) -> State:
    """The entries whose name begins with ``prefix``, by the rest of it."""
    return {n.removeprefix(prefix): value for n, value in state.items() if n.startswith(prefix)}


def check_names(state: State, expected: set[str]) -> None:
    """Raise KeyError if the state is of another model or another optimizer."""
    if different := sorted(expected ^ state.keys()):
        raise KeyError(f"load: the method and the state differ in {different}")
