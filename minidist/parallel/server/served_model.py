"""The whole model of a parameter server: read, evaluated, saved and loaded.

Each server has its key range of the parameters and of the optimizer's state (key_ranges.py), and
sends it to every rank that has not died. Workers have the frozen parameters, the buffers and the
residuals of compression.
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
    """Base of ``KeyRanges``: reads, evaluates, saves and loads the whole model."""

    psi: int  # number of trained parameters
    keys: list[slice]  # of each server
    dtype: np.dtype
    data: Array  # on a server: its range of the parameters, in ``owned``
    owned: slice
    part: Part  # on a server: of the optimizer
    pushes: Pushes

    def parameters(self) -> dict[str, np.ndarray]:
        """The servers' parameters: every server sends its range to all ranks."""
        own = self.data[self.owned] if self.serves else None
        host = arrays.to_host(self.gather_keys(own))
        return self.in_order(by_parameter(host, parameter_slices(self.whole), self.whole))

    def frozen(self) -> dict[str, np.ndarray]:
        """The frozen parameters, sent by the first living worker: servers do not have them."""
        worker = next(self.alive(self.workers))
        found: State = {}
        for name, parameter in self.whole.frozen().items():
            mine = worker == self.comm.rank
            found[name] = (
                arrays.to_host(parameter.data).copy()
                if mine
                else np.empty(parameter.declared, self.dtype)
            )
            self.send_to_all(found[name], worker)
        return found

    def gather_keys(self, own: Array | None) -> Array:
        """The whole flat array, on every rank, from the servers' ranges ``own``."""
        flat = arrays.module().empty(self.psi, self.dtype)
        for server, keys in zip(self.servers, self.keys, strict=True):
            if server == self.comm.rank:
                flat[keys] = own
            self.send_to_all(flat[keys], server)
        return flat

    def send_to_all(self, array: Array, root: int) -> None:
        """Copy ``array`` of rank ``root`` to every living rank, in place."""
        if self.comm.rank != root:
            with self.servers_must_live():
                self.comm.recv(array, root)
            return
        for peer in range(self.comm.size):
            if peer != root and peer not in self.lost:
                with self.without_lost_workers(), self.comm.step(f"send to {peer}"):
                    self.comm.send(array, peer)

    def buffers(self) -> dict[str, np.ndarray]:
        """The mean over the living workers."""
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
                self.send_to_all(flat, worker)
                every.append(flat)
        return mean_of(found, every)

    @property
    def copies(self) -> int:
        return len(self.workers)

    def evaluate(self, dataset: Dataset, chunk: int = 1000) -> tuple[float, float]:
        """(mean loss, accuracy) of the servers' parameters; each worker evaluates a shard."""
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

    # Saving and loading

    def optimizer_state(self, kept: State) -> State:
        steps = np.array([self.optimizer.steps])
        self.send_to_all(steps, self.servers[0])
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
        """This server's index among the servers; -1 on a rank that only works."""
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
        """The keys of the server on this rank."""
        return self.keys[self.servers.index(self.comm.rank)]

    def flatten(self, by_name: State, keys: slice | None = None) -> Array:
        """The values of ``keys`` (None: all) in the order of the flat array; reads no others."""
        flat = flat_part(by_name, parameter_slices(self.whole), keys)
        return arrays.to_device(flat.astype(self.dtype, copy=False))

    def own_arrays(self) -> dict[str, Array]:
        return self.pushes.to_continue()

    def gather_own(self) -> State:
        if not self.has_own_arrays:
            return {}
        return gather_own(self.comm, self.own_arrays(), self.send_to_all)

    @property
    def has_own_arrays(self) -> bool:
        """Whether any rank has arrays that others do not have."""
        return self.pushes.compressed
