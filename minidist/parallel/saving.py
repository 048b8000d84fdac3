"""Reading, saving and loading a method's model and optimizer, under serial training's names.

    parameters, buffers, frozen    the whole model, on every rank
    state, load                    all that training needs to continue, on every rank: see state.py
    state_shares                   the same, but each element on one rank only: see shares.py

A method describes what its ranks hold in ``optimizer_shards``, ``own_arrays`` and
``load_parameters``. The other functions here are built on these three.
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
    """Base of ``Method``: reading, saving and loading."""

    model: Module  # the part of the model that this rank holds
    whole: Module  # declared only: names, shapes and costs of all parameters
    optimizer: Optimizer
    comm: Comm
    steps: int  # training steps made

    def parameters(self) -> dict[str, np.ndarray]:
        """All parameters on the host, by name, with the shapes of serial training. Every rank must
        call it."""
        named = self.model.named_parameters()
        return {name: arrays.to_host(parameter.data).copy() for name, parameter in named.items()}

    def frozen(self) -> dict[str, np.ndarray]:
        """The frozen parameters, by name, on the host. Every rank must call it."""
        named = self.model.frozen()
        return {name: arrays.to_host(parameter.data).copy() for name, parameter in named.items()}

    def in_order(self, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """``found``, the trained parameters, and the frozen ones, in the model's order."""
        found = found | self.frozen()
        return {name: found[name] for name in self.whole.named_parameters()}

    def buffers(self) -> dict[str, np.ndarray]:
        """All buffers, such as batch norm's running mean, by name. Every rank must call it.

        Ranks see different samples, so their buffers differ. This is the mean over the ranks that
        train; it is the same on every rank. See buffers.py.
        """
        return mean_buffers(self.comm, self.model)

    def optimizer_shards(self) -> list[OptimizerShard]:
        """The parameters that this rank's optimizers step; by default the whole model."""
        flat = self.model.flat
        part = self.optimizer.only_part()
        named = self.model.named_parameters()
        return [OptimizerShard(named, flat.slices, self.optimizer, part, flat.data)]

    def state(self) -> State:
        """All arrays that training needs to continue, on every rank. Every rank must call it."""
        whole = self.parameters() | self.buffers()
        found = {f"parameters/{name}": value for name, value in whole.items()}
        found["method/steps"] = np.array(self.steps)
        kept = self.gather_own()
        return found | self.optimizer_state(kept) | kept

    def load(self, state: State) -> None:
        """Continue from a ``state()``, saved on any number of ranks with the same model and
        optimizer.

        Every rank must call it. Raises KeyError if the state is of another model or optimizer, and
        ValueError if an array has another shape. Arrays that only one rank had (``own_arrays``) are
        loaded if the number of ranks is the same as when saved.
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
        """What this rank writes into a checkpoint. All ranks' shares together are ``state()``, each
        element once. By default this rank's share is 1/p of it; shares.py lists the methods that
        send less. Every rank must call it. The arrays may be views: training may change them.
        """
        return equal_shares(self.state(), self.comm)

    def own_shares(self, without: Collection[str] = ()) -> list[Share]:
        """``state_shares()`` taken from this rank's own memory, without gathering."""
        shards = self.optimizer_shards()
        number, count = self.which_replica()
        found = shard_shares(number, count, shards, without)
        constants = self.frozen()  # the same on every replica: the first one writes them
        for name, values in constants.items() if number == 0 else ():
            found += [] if name in without else [whole_share(f"parameters/{name}", values)]
        own = self.own_arrays()
        return all_shares(self.comm, found, shards, self.steps, self.buffers(), own)

    def which_replica(self) -> tuple[int, int]:
        """(number, count): of the ``count`` ranks that hold what ``optimizer_shards`` lists, or a
        shard of it, this is number ``number``."""
        return self.comm.rank, self.comm.size

    def optimizer_state(self, kept: State) -> State:
        """The optimizer's state and steps, under serial names, on every rank.

        ``kept``: the result of ``gather_own``.
        """
        return save_optimizer(self.comm, self.optimizer_shards())

    def load_parameters(self, by_name: State) -> None:
        """Set this rank's part of the parameters and buffers from those of the whole model."""
        self.model.load({name: np.asarray(by_name[name]) for name in own_names(self.model)})

    def load_optimizer(self, state: State) -> None:
        load_optimizer(self.comm, self.optimizer_shards(), state)

    def own_arrays(self) -> dict[str, Array]:
        """Arrays that only this rank has and that training needs to continue, by name."""
        return {}

    def gather_own(self) -> State:
        """Every rank's ``own_arrays``, on every rank."""
        return gather_own(self.comm, self.own_arrays())
