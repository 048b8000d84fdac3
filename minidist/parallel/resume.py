"""Going on later, on another number of ranks: what a method saves, and takes back.

    4 ranks, ZeRO          any rank                       3 ranks, data parallel
    ▏▏▏▏  own shards  ──▶  state(): by parameter,  ──▶    each rank takes what it keeps
                           of serial shape                of every array

Shards depend on the number of ranks; names and shapes do not. So ``state`` gathers every array,
parameters and the optimizer's, cuts it at parameters, and names each piece:

    parameters/2.weight   optimizer/mean/2.weight   optimizer/square/2.weight   steps

and ``load`` cuts it again, for whoever loads. What serial training saved, ZeRO can load, and the
other way about. The dictionary holds host arrays alone: ``safetensors.numpy.save_file(state,
path)`` writes it. Gathering sends K(p - 1)/p of the parameters' bytes for K arrays of state (one
more for ZeRO's stage 3), and for the moment needs host memory for all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from minidist.collectives import ring
from minidist.comm.comm import Comm
from minidist.engine import array as arrays
from minidist.engine.array import Array
from minidist.nn.module import Parameter
from minidist.optim.optimizer import Optimizer
from minidist.parallel.method import Method

State = dict[str, np.ndarray]


@dataclass(frozen=True)
class Held:
    """Parameters that one optimizer steps, and which part of them this rank's copy of it has."""

    parameters: dict[str, Parameter]
    slices: dict[str, slice]  # of each in the flat array that is cut into shards
    optimizer: Optimizer
    data: Array  # what this rank's optimizer steps: the shard, or all
    shards: Sequence[slice] | None = None  # of all ranks; None if every rank has all

    def whole(self, comm: Comm, array: Array) -> np.ndarray:
        """All of an array of which each rank has its shard, on the host."""
        if self.shards is None:
            return arrays.to_host(array)
        gathered = arrays.module_of(array).empty(self.shards[-1].stop, array.dtype)
        gathered[self.shards[comm.rank]] = array
        ring.all_gather(comm, gathered, self.shards)
        return arrays.to_host(gathered)

    def own(self, comm: Comm, by_name: State) -> Array:
        """This rank's part of what ``whole`` gave, from its pieces."""
        flat = np.concatenate([by_name[name].reshape(-1) for name in self.slices])
        own = flat if self.shards is None else flat[self.shards[comm.rank]]
        return arrays.module_of(self.data).asarray(own.astype(self.data.dtype, copy=False))


class Resumable(Method if TYPE_CHECKING else object):  # type: ignore[misc]
    """What a method can do whose state is a replica, or shards of one."""

    def held(self) -> list[Held]:
        """Everything that is stepped; by default a whole replica."""
        flat = self.model.flat
        named = self.model.named_parameters()
        return [Held(named, flat.slices, self.optimizer, flat.data)]

    def state(self) -> State:
        """All that training needs to go on, on every rank. Every rank must call it.

        Raises TypeError if the ranks' models, or what they owe each other, differ.
        """
        self.check_resumable()
        found = {f"parameters/{name}": value for name, value in self.parameters().items()}
        for held in self.held():
            found["steps"] = np.array(held.optimizer.steps)
            for slot in held.optimizer.state:
                whole = held.whole(self.comm, held.optimizer.state[slot])
                for name, where in held.slices.items():
                    shape = held.parameters[name].declared
                    found[f"optimizer/{slot}/{name}"] = whole[where].reshape(shape).copy()
        return found

    def load(self, state: State) -> None:
        """Go on from ``state()`` of any number of ranks, of the same model and optimizer.

        Raises KeyError if the state is another model's or another optimizer's.
        """
        self.check_resumable()
        expected = {f"parameters/{n}" for n in self.whole.named_parameters()}
        expected |= {f"parameters/{n}" for n in self.whole.named_buffers()} | {"steps"}
        if "steps" in state and state["steps"] > 0:
            for name in self.whole.named_parameters():
                expected |= {f"optimizer/{slot}/{name}" for slot in self.optimizer.slots}
        if different := sorted(expected ^ state.keys()):
            raise KeyError(f"load: the method and the state differ in {different}")
        self.load_parameters(_under("parameters/", state))
        for held in self.held():
            held.optimizer.prepare(held.data)
            held.optimizer.steps = int(state["steps"])
            for slot, array in held.optimizer.state.items():
                if state["steps"] > 0:
                    array[...] = held.own(self.comm, _under(f"optimizer/{slot}/", state))

    def load_parameters(self, by_name: State) -> None:
        self.model.load(by_name)

    def check_resumable(self) -> None:
        if not self.exact:
            raise TypeError(
                f"{type(self).__name__}: the ranks' models, or the errors they keep, differ, and "
                "other ranks could not take them over: save parameters(), and start anew from them"
            )


def _under(prefix: str, state: State) -> State:
    return {n.removeprefix(prefix): value for n, value in state.items() if n.startswith(prefix)}
