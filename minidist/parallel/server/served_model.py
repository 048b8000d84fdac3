"""The whole model of a parameter server: read out, evaluated, saved and loaded.

The servers have the parameters and the optimizer's state, each its key range of them (see
key_ranges.py): a server tells its range to every rank that lives. Frozen parameters and buffers are
the workers'. Beside them, only errors of compression are kept on ranks.
"""

from __future__ import annotations

from contextlib import suppress

import numpy as np

from minidist.comm.comm import RankLost
from minidist.data.batches import Dataset
from minidist.engine import array as arrays
from minidist.engine.array import Array
from minidist.optim.part import Part
from minidist.parallel.buffers import mean_of, with_buffers
from minidist.parallel.evaluation import as_in_evaluation, mean_over_ranks, sums_of, with_values
from minidist.parallel.model_costs import parameter_slices
from minidist.parallel.server.pushes import Pushes
from minidist.parallel.server.roles import ServersAndWorkers
from minidist.parallel.shares import Share
from minidist.parallel.state import (
    OptimizerShard,
    State,
    by_parameter,
    flat_part,
    gather_own,
    own_buffers,
    under,
)


class ServedModel(ServersAndWorkers):
    """Base of ``KeyRanges``: what it says of the whole model."""

    psi: int  # parameters that are trained
    keys: list[slice]  # of each server
    dtype: np.dtype
    data: Array  # on a server: its range of the parameters, in ``owned``
    owned: slice
    part: Part  # on a server: of the optimizer
    pushes: Pushes

    def parameters(self) -> dict[str, np.ndarray]:
        """The servers' parameters: every server sends its range to everyone."""
        own = self.data[self.owned] if self.serves else None
        host = arrays.to_host(self.gather_keys(own))
        return self.in_order(by_parameter(host, parameter_slices(self.whole), self.whole))

    def frozen(self) -> dict[str, np.ndarray]:
        """Those of the first worker that lives: a rank that only serves has none."""
        worker = next(self.alive(self.workers))
        found: State = {}
        for name, parameter in self.whole.frozen().items():
            mine = worker == self.comm.rank
            found[name] = (
                arrays.to_host(parameter.data).copy()
                if mine
                else np.empty(parameter.declared, self.dtype)
            )
            self.tell(found[name], worker)
        return found

    def gather_keys(self, own: Array | None) -> Array:
        """An array as long as all keys, of which every server gives its range, on every rank."""
        flat = arrays.module().empty(self.psi, self.dtype)
        for server, keys in zip(self.servers, self.keys, strict=True):
            if server == self.comm.rank:
                flat[keys] = own
            self.tell(flat[keys], server)
        return flat

    def tell(self, array: Array, server: int) -> None:
        """Copy ``array`` of one rank, mostly a server, to every rank that lives, in place."""
        if self.comm.rank != server:
            with self.servers_must_live():
                self.comm.recv(array, server)
            return
        for peer in range(self.comm.size):
            if peer != server and peer not in self.lost:
                with self.without_lost_workers(), self.comm.step(f"tell {peer}"):
                    self.comm.send(array, peer)

    def buffers(self) -> dict[str, np.ndarray]:
        """The mean over the workers that live."""
        named = self.whole.named_buffers()
        found: State = {n: np.empty(buffer.declared, self.dtype) for n, buffer in named.items()}
        if not found:
            return found
        every = []
        for worker in self.workers:
            flat = np.empty(sum(values.size for values in found.values()), self.dtype)
            if worker == self.comm.rank:
                own = own_buffers(self.model).values()
                flat[...] = np.concatenate([values.reshape(-1) for values in own])
            with suppress(RankLost):
                self.tell(flat, worker)
                every.append(flat)
        return mean_of(found, every)

    @property
    def copies(self) -> int:
        return len(self.workers)

    def evaluate(self, dataset: Dataset, chunk: int = 1000) -> tuple[float, float]:
        """(mean loss, accuracy) of the servers' parameters; the workers share the work."""
        sums, values = np.zeros(4), self.gather_keys(self.data[self.owned] if self.serves else None)
        buffers = self.buffers()
        if self.works:
            shard, shards = self.workers.index(self.comm.rank), len(self.workers)
            with (
                as_in_evaluation(self.model),
                with_values(self.model.flat.data, values),
                with_buffers(self.model, buffers),
            ):
                sums += sums_of(self.forward, self.loss, dataset, chunk, shard, shards)
        return mean_over_ranks(self.comm, sums)

    # Saving and loading: all that matters is on the servers, but for the errors of compression

    def optimizer_state(self, kept: State) -> State:
        steps = np.array([self.optimizer.steps])
        self.tell(steps, self.servers[0])
        found: State = {"steps": np.array(int(steps[0]))}
        for slot in self.optimizer.slots if steps[0] else ():
            own = self.part.state[slot] if self.serves else None
            flat = arrays.to_host(self.gather_keys(own))
            cut = by_parameter(flat, parameter_slices(self.whole), self.whole)
            found |= {f"optimizer/{slot}/{name}": value for name, value in cut.items()}
        return found

    def optimizer_shards(self) -> list[OptimizerShard]:
        """This server's range of the keys; a rank that only works steps nothing."""
        if not self.serves:
            return []
        named, slices = self.whole.named_parameters(), parameter_slices(self.whole)
        own = self.data[self.owned]
        return [OptimizerShard(named, slices, self.optimizer, self.part, own, self.keys)]

    def which_replica(self) -> tuple[int, int]:
        """This server among the servers; -1 if it only works."""
        return (self.servers.index(self.comm.rank) if self.serves else -1), len(self.servers)

    def state_shares(self) -> list[Share]:
        return self.own_shares()

    def load_parameters(self, by_name: State) -> None:
        if self.serves:
            self.data[self.owned] = self.flatten(by_name, self.own_keys)
        if self.works:
            self.model.flat.data = self.flatten(by_name)
            for name, buffer in (self.model.frozen() | self.model.named_buffers()).items():
                buffer.data[...] = arrays.module_of(buffer.data).asarray(by_name[name])

    def load_optimizer(self, state: State) -> None:
        if not self.serves:
            return
        self.optimizer.prepare(self.part, self.data[self.owned])
        self.optimizer.steps = int(state["steps"])
        for slot, array in self.part.state.items():
            if state["steps"] > 0:
                by_name = under(f"optimizer/{slot}/", state)
                array[...] = self.flatten(by_name, self.own_keys)

    @property
    def own_keys(self) -> slice:
        """The keys of this rank's server."""
        return self.keys[self.servers.index(self.comm.rank)]

    def flatten(self, by_name: State, keys: slice | None = None) -> Array:
        """The values of some keys, or all, as they lie in the flat array; reads no others."""
        flat = flat_part(by_name, parameter_slices(self.whole), keys)
        return arrays.to_device(flat.astype(self.dtype, copy=False))

    def own_arrays(self) -> dict[str, Array]:
        return self.pushes.remembered()

    def gather_own(self) -> State:
        if not self.keeps_own:
            return {}
        return gather_own(self.comm, self.own_arrays(), self.tell)

    @property
    def keeps_own(self) -> bool:
        """Whether any rank keeps what others do not have."""
        return self.pushes.compressed
