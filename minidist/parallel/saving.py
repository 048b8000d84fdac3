"""What every method can read out, save and load: its model and its optimizer, by serial names.

    parameters, buffers, frozen    the model, whole, on every rank
    state, load                    all that training needs to go on, on every rank: see state.py
    state_shares                   the same, each element on one rank only: see shares.py

A method says what its ranks hold, in ``optimizer_shards``, ``own_arrays`` and ``load_parameters``;
the rest follows.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from minidist.comm.comm import Comm
from minidist.engine import array as arrays
from minidist.engine.array import Array
from minidist.nn.module import Module
from minidist.optim.optimizer import Optimizer
from minidist.parallel.buffers import mean_buffers
from minidist.parallel.settings import Settings
from minidist.parallel.shares import Share, all_shares, equal_shares, shard_shares, whole_share
from minidist.parallel.state import (
    OptimizerShard,
    State,
    check_own,
    check_state,
    gather_own,
    load_optimizer,
    own,
    own_names,
    save_optimizer,
    under,
)


class Saving(Settings):
    """Base of ``Method``: what it reads out, saves and loads."""

    model: Module  # the part of the model that this rank holds
    whole: Module  # declared only: names, shapes and costs of all parameters
    optimizer: Optimizer
    comm: Comm
    steps: int  # training steps made

    def parameters(self) -> dict[str, np.ndarray]:
        """All parameters, by name and of serial shape, on the host. Every rank must call it."""
        named = self.model.named_parameters()
        return {name: arrays.to_host(parameter.data).copy() for name, parameter in named.items()}

    def frozen(self) -> dict[str, np.ndarray]:
        """The frozen parameters, by name, on the host: constants. Every rank must call it."""
        named = self.model.frozen()
        return {name: arrays.to_host(parameter.data).copy() for name, parameter in named.items()}

    def in_order(self, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The trained parameters, ``found``, and the frozen ones, in the model's order."""
        found = found | self.frozen()
        return {name: found[name] for name in self.whole.named_parameters()}

    def buffers(self) -> dict[str, np.ndarray]:
        """All buffers, such as batch norm's running mean, by name. Every rank must call it.

        Ranks see different samples, so their buffers differ: this is the mean over the ranks that
        train, the same on every rank. See buffers.py.
        """
        return mean_buffers(self.comm, self.model)

    def optimizer_shards(self) -> list[OptimizerShard]:
        """All that this rank's optimizers step; by default the whole model."""
        flat = self.model.flat
        part = self.optimizer.only_part()
        named = self.model.named_parameters()
        return [OptimizerShard(named, flat.slices, self.optimizer, part, flat.data)]

    def state(self) -> State:
        """All that training needs to go on, on every rank. Every rank must call it."""
        whole = self.parameters() | self.buffers()
        found = {f"parameters/{name}": value for name, value in whole.items()}
        found["method/steps"] = np.array(self.steps)
        kept = self.gather_own()
        return found | self.optimizer_state(kept) | kept

    def load(self, state: State) -> None:
        """Go on from ``state()`` of any number of ranks, of the same model and optimizer.

        Every rank must call it. Raises KeyError if the state is another model's or another
        optimizer's, and ValueError if an array has another shape. What a rank kept for itself is
        taken if there are as many ranks as then.
        """
        check_state(state, self.whole, self.optimizer)
        check_own(self.comm, state, self.own_arrays())
        self.steps = int(state["method/steps"])
        self.load_parameters(under("parameters/", state))
        self.load_optimizer(state)
        for name, values in own(self.comm, state).items():
            if (array := self.own_arrays().get(name)) is not None:
                array[...] = arrays.module_of(array).asarray(values)

    def state_shares(self) -> list[Share]:
        """What this rank writes into a checkpoint: of all ranks together, ``state()``, each
        element once. By default 1/p of it; see shares.py for who does better. Every rank must
        call it. The arrays may be those that training changes.
        """
        return equal_shares(self.state(), self.comm)

    def own_shares(self, without: Collection[str] = ()) -> list[Share]:
        """``state_shares()`` from this rank's own memory, without gathering."""
        shards = self.optimizer_shards()
        number, count = self.which_replica()
        found = shard_shares(number, count, shards, without)
        constants = self.frozen()  # the same on every replica: the first one writes them
        for name, values in constants.items() if number == 0 else ():
            found += [] if name in without else [whole_share(f"parameters/{name}", values)]
        own = self.own_arrays()
        return all_shares(self.comm, found, shards, self.steps, self.buffers(), own)

    def which_replica(self) -> tuple[int, int]:
        """Which one of how many ranks this is that have what ``optimizer_shards`` lists, or a
        shard of it."""
        return self.comm.rank, self.comm.size

    def optimizer_state(self, kept: State) -> State:
        """The optimizer's state and steps, by serial names, on every rank.

        ``kept`` is what ``gather_own`` gave.
        """
        return save_optimizer(self.comm, self.optimizer_shards())

    def load_parameters(self, by_name: State) -> None:
        """Take this rank's part of all parameters and buffers."""
        self.model.load({name: np.asarray(by_name[name]) for name in own_names(self.model)})

    def load_optimizer(self, state: State) -> None:
        load_optimizer(self.comm, self.optimizer_shards(), state)

    def own_arrays(self) -> dict[str, Array]:
        """What this rank keeps that other ranks do not have, and training needs to go on."""
        return {}

    def gather_own(self) -> State:
        """Every rank's ``own_arrays``, on every rank."""
        return gather_own(self.comm, self.own_arrays())
