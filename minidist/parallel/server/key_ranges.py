"""Key ranges: which server owns which parameters.

The flat parameters are cut into S contiguous ranges, one for each server:

    flat.data   [ 0.weight ............ | 0.bias | 2.weight ....... | 2.bias ]
    S = 3       [ server 0       |  server 1        |  server 2             ]

A server holds its range alone: its parameters, its sum of gradients, its part of the optimizer's
state. Parameters are initialised by name, so it builds these without building the model. Which
ranks serve, and which work: roles.py. Li et al., "Scaling distributed machine learning with the
parameter server", OSDI'14, section 4.3.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import numpy as np

from minidist.collectives import ring
from minidist.collectives.ring import chunks
from minidist.comm.comm import Comm, RankLost
from minidist.data.batches import Dataset
from minidist.engine import array as arrays
from minidist.engine.array import Array
from minidist.engine.seeds import generator
from minidist.nn.loss import Loss
from minidist.nn.module import Module
from minidist.optim.clip import clip_by_global_norm
from minidist.optim.optimizer import Optimizer
from minidist.parallel.buffers import mean_of, with_buffers
from minidist.parallel.evaluation import (
    as_in_evaluation,
    mean_over_ranks,
    sums_of,
    with_values,
)
from minidist.parallel.gradient_compression.compressor import Compressor
from minidist.parallel.model_costs import parameter_count, parameter_slices
from minidist.parallel.server.pushes import Pushes
from minidist.parallel.server.roles import Servers, ServersAndWorkers
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


def initial_values(model: Module, seed: int, keys: slice) -> Array:
    """The part ``keys`` of the flat parameters as ``model.init(seed)`` fills them.

    The rest is not initialised.
    """
    values = np.empty(keys.stop - keys.start, arrays.default_dtype())
    named = model.named_parameters()
    for name, where in parameter_slices(model).items():
        low, high = max(where.start, keys.start), min(where.stop, keys.stop)
        if low < high:
            parameter = named[name]
            drawn = parameter.initialiser(generator(seed, "init", name), parameter.declared)
            part = drawn.reshape(-1)[low - where.start : high - where.start]
            values[low - keys.start : high - keys.start] = part
    return arrays.to_device(values)


class KeyRanges(ServersAndWorkers):
    """Base of the parameter servers: key ranges, and what servers and workers keep.

    ``extra`` counts slots after the last parameter, which the last server owns too: 1 if the loss
    rides along. ``data`` and ``total`` are the server's range of the parameters and the gradient
    that it steps with; ``optimizer`` has state on servers alone. A server beside a worker shares
    these arrays with it, or has its own if they live ``apart``.
    """

    changeable = ServersAndWorkers.changeable | {"microbatches"}
    unskippable = (
        "servers step when gradients arrive, and do not ask all ranks first: train with "
        'not_finite="raise" from a checkpoint'
    )

    def __init__(
        self,
        model: Module,
        loss: Loss,
        optimizer: Optimizer,
        comm: Comm,
        seed: int,
        servers: Servers,
        colocated: bool,
        extra: int = 0,
        apart: bool = False,
        compressor: Callable[[], Compressor] | None = None,
        clip: float | None = None,
        microbatches: int = 1,
    ) -> None:
        super().__init__(model, loss, optimizer, comm, seed, microbatches, clip)
        self.model = model
        self.psi = parameter_count(model)
        self.take_roles(servers, colocated)
        self.ranges = chunks(self.psi + extra, len(self.servers))
        self.keys = [slice(part.start, min(part.stop, self.psi)) for part in self.ranges]
        self.dtype = np.dtype(arrays.default_dtype())
        self.shares = comm.size == 1 or not apart
        self.server_comm: Comm = comm  # where this rank's server serves
        self.server_group = comm.split(int(self.serves))
        self.pushes = Pushes(model, self.ranges, self.keys, compressor, self.dtype, seed, comm.rank)
        if self.works:
            self.model = model.init(seed)
            self.pushes.start_sending(self.model.flat.grad, self.clients_of(comm.rank))
        if self.serves:
            index = self.servers.index(comm.rank)
            part, keys = self.ranges[index], self.keys[index]
            self.data: Array  # this server's range, with the extra slot if it has it
            self.total: Array
            if self.works and self.shares:
                self.data = self.model.flat.data_and_loss[part]
                self.total = self.model.flat.grad_and_loss[part]
            else:
                values = initial_values(model, seed, keys)
                xp = arrays.module_of(values)
                self.data = xp.zeros(part.stop - part.start, self.dtype)
                self.data[: values.size] = values
                self.total = xp.zeros_like(self.data)
            self.owned = slice(0, keys.stop - keys.start)  # the keys in ``data`` and ``total``
            if comm.size > 1:
                self.pushes.start_receiving(index, self.data)
            # A rule that needs norms of whole parameters gets them from all servers together.
            self.part = optimizer.part(parameter_slices(model), keys.start, self.sum_over_servers)

    def clients_of(self, rank: int) -> list[int]:
        """The servers, by index, to which this worker sends: all but the one beside it."""
        return [index for index, server in enumerate(self.servers) if server != rank]

    def update_keys(self) -> None:
        """One step of the optimizer on this server's range."""
        with self.server_comm.step("optimizer"):
            items = [(self.part, self.data[self.owned], self.total[self.owned])]
            self.optimizer.step_parts(items)

    def clip_total(self) -> None:
        """Scale ``total`` by the norm of the whole gradient: all servers agree on it."""
        if self.clip is not None:
            clip_by_global_norm(self.total[self.owned], self.clip, self.sum_over_servers)

    def norms(self) -> list[int]:
        """How many numbers the servers sum in each all-reduce of a step, to agree on norms."""
        return [1] * (self.clip is not None) + [2 * len(parameter_slices(self.whole))] * (
            self.optimizer.layerwise
        )

    def sum_over_servers(self, numbers: np.ndarray) -> None:
        """Sum a few numbers over all servers, in place: each must call it."""
        with self.servers_must_live(), self.server_comm.step("agree on norms"):
            # A server's rank in this group is its index among the servers.
            ring.all_reduce(self.server_group, numbers)

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

    def arrays(self) -> dict[str, list[Array]]:
        found: dict[str, list[Array]] = {"parameters": [], "gradients": []}
        if self.works:
            found["parameters"] += self.model.flat.arrays()
            found["gradients"].append(self.model.flat.grad)
        if self.serves and not (self.works and self.shares):
            found["parameters"].append(self.data[self.owned])
            found["gradients"].append(self.total[self.owned])
        found["gradients"] += self.pushes.arrays()
        found["optimizer"] = self.optimizer.arrays()
        return found

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize
