"""Key ranges: which server owns which parameters.

The flat parameters are cut into S contiguous ranges, one for each server:

    flat.data   [ 0.weight ............ | 0.bias | 2.weight ....... | 2.bias ]
    S = 3       [ server 0       |  server 1        |  server 2             ]

A server holds only its range: of the parameters, the sum of gradients and the optimizer's state.
Parameters are initialised by name, so a server initialises its range without building the model.
roles.py decides which ranks serve and which work. Li et al., "Scaling distributed machine learning
with the parameter server", OSDI'14, section 4.3.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from minidist.collectives import ring
from minidist.collectives.ring import chunks
from minidist.comm.comm import Comm
from minidist.engine import array as arrays
from minidist.engine.array import Array
from minidist.engine.seeds import generator
from minidist.nn.loss import Loss
from minidist.nn.module import Module
from minidist.optim.clip import clip_by_global_norm
from minidist.optim.optimizer import Optimizer
from minidist.parallel.gradient_compression.compressor import Compressor
from minidist.parallel.model_costs import parameter_count, parameter_slices
from minidist.parallel.server.pushes import Pushes
from minidist.parallel.server.roles import Servers
from minidist.parallel.server.served_model import ServedModel


def initial_values(model: Module, seed: int, keys: slice) -> Array:
    """The part ``keys`` of the flat parameters, with the values of ``model.init(seed)``."""
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


class KeyRanges(ServedModel):
    """Base of the parameter servers: key ranges, and the arrays of servers and workers.

    ``extra``: elements after the last parameter, which belong to the last server; 1 if the loss is
    sent with the gradients. ``data`` and ``total`` are the server's range of the parameters and of
    the summed gradient. Only servers have optimizer state. On a colocated rank server and worker
    share these arrays, unless ``apart``.
    """

    changeable = ServedModel.changeable | {"microbatches"}
    unskippable = (
        "servers step when gradients arrive, without asking all ranks first: use "
        'not_finite="raise" and continue from a checkpoint'
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
        self.set_roles(servers, colocated)
        self.ranges = chunks(self.psi + extra, len(self.servers))
        self.keys = [slice(part.start, min(part.stop, self.psi)) for part in self.ranges]
        self.dtype = np.dtype(arrays.default_dtype())
        self.same_arrays = comm.size == 1 or not apart  # of server and worker on one rank
        self.server_comm: Comm = comm  # this rank's server sends and receives on it
        self.server_group = comm.split(int(self.serves))
        self.pushes = Pushes(model, self.ranges, self.keys, compressor, self.dtype, seed, comm.rank)
        if self.works:
            self.model = model.init(seed)
            self.pushes.start_sending(self.model.flat.grad, self.clients_of(comm.rank))
        if self.serves:
            index = self.servers.index(comm.rank)
            part, keys = self.ranges[index], self.keys[index]
            self.data: Array  # this server's range, with its extra elements
            self.total: Array
            if self.works and self.same_arrays:
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
            # A layer-wise rule needs norms of whole parameters, so it sums over all servers.
            self.part = optimizer.part(parameter_slices(model), keys.start, self.sum_over_servers)

    def clients_of(self, rank: int) -> list[int]:
        """The indices of the servers to which the worker on ``rank`` sends: all on other ranks."""
        return [index for index, server in enumerate(self.servers) if server != rank]

    def update_keys(self) -> None:
        """One step of the optimizer on this server's range."""
        with self.server_comm.step("optimizer"):
            items = [(self.part, self.data[self.owned], self.total[self.owned])]
            self.optimizer.step_parts(items)

    def clip_total(self) -> None:
        """Clip ``total`` by the norm of the whole gradient, summed over all servers."""
        if self.clip is not None:
            clip_by_global_norm(self.total[self.owned], self.clip, self.sum_over_servers)

    def norms(self) -> list[int]:
        """The lengths of the all-reduces that sum norms over the servers in a step."""
        return [1] * (self.clip is not None) + [2 * len(parameter_slices(self.whole))] * (
            self.optimizer.layerwise
        )

    def sum_over_servers(self, numbers: np.ndarray) -> None:
        """Sum a few numbers over all servers, in place. Every server must call it."""
        with self.servers_must_live(), self.server_comm.step("agree on norms"):
            # A server's rank in this group is its index among the servers.
            ring.all_reduce(self.server_group, numbers)

    def arrays(self) -> dict[str, list[Array]]:
        found: dict[str, list[Array]] = {"parameters": [], "gradients": []}
        if self.works:
            found["parameters"] += self.model.flat.arrays()
            found["gradients"].append(self.model.flat.grad)
        if self.serves and not (self.works and self.same_arrays):
            found["parameters"].append(self.data[self.owned])
            found["gradients"].append(self.total[self.owned])
        found["gradients"] += self.pushes.arrays()
        found["optimizer"] = self.optimizer.arrays()
        return found

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize
