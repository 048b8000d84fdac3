"""Key ranges: which server owns which parameters, and which ranks serve or work.

The flat parameters are cut into S contiguous ranges, one for each server:

    flat.data   [ 0.weight ............ | 0.bias | 2.weight ....... | 2.bias ]
    S = 3       [ server 0       |  server 1        |  server 2             ]

A server holds its range alone: its parameters, its sum of gradients, its part of the optimizer's
state. Parameters are initialised by name, so it builds these without building the model. The
first S ranks serve and the others work; or every rank does both, a worker with a server beside it
("colocated"). Li et al., "Scaling distributed machine learning with the parameter server",
OSDI'14, section 4.3.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from minidist import array as arrays
from minidist.array import Array
from minidist.collectives import all_reduce
from minidist.collectives.ring import chunks
from minidist.comm.comm import Comm, RankLost
from minidist.nn.layers import Sequential
from minidist.nn.module import Module
from minidist.optim.optimizer import Optimizer
from minidist.parallel.method import Method, parameter_count
from minidist.seeds import generator


class ServerLost(RuntimeError):
    """A server has died, and with it the only copy of its keys."""


def roles(size: int, servers: int, colocated: bool) -> tuple[list[int], list[int]]:
    """The ranks that serve, and those that work. Never more servers than workers.

    >>> roles(5, 2, colocated=False)
    ([0, 1], [2, 3, 4])
    """
    if servers < 1:
        raise ValueError(f"a parameter server needs at least one server, not {servers}")
    if colocated or size == 1:
        return list(range(size)), list(range(size))
    servers = min(servers, size // 2)
    return list(range(servers)), list(range(servers, size))


def flat_slices(model: Module) -> dict[str, slice]:
    """Where each parameter of a declared model lies in the flat array, once there is one."""
    slices, start = {}, 0
    for name, parameter in model.named_parameters().items():
        slices[name] = slice(start, start + parameter.size)
        start += parameter.size
    return slices


def initial_values(model: Module, seed: int, keys: slice) -> Array:
    """The part ``keys`` of the flat parameters as ``model.init(seed)`` fills them, it alone."""
    values = np.empty(keys.stop - keys.start, arrays.default_dtype())
    named = model.named_parameters()
    for name, where in flat_slices(model).items():
        low, high = max(where.start, keys.start), min(where.stop, keys.stop)
        if low < high:
            parameter = named[name]
            drawn = parameter.initialiser(generator(seed, "init", name), parameter.declared)
            part = drawn.reshape(-1)[low - where.start : high - where.start]
            values[low - keys.start : high - keys.start] = part
    return arrays.to_device(values)


class KeyRanges(Method):
    """Base of the parameter servers: roles, key ranges, and what servers and workers hold.

    ``extra`` counts slots after the last parameter, which the last server owns too: 1 if the loss
    rides along. ``data`` and ``total`` are the server's range of the parameters and the gradient
    that it steps with; ``optimizer`` has state on servers alone.
    """

    def __init__(
        self,
        model: Sequential,
        loss: Module,
        optimizer: Optimizer,
        comm: Comm,
        seed: int,
        servers: int,
        colocated: bool,
        extra: int,
    ) -> None:
        super().__init__(model, loss, optimizer, comm, seed)
        self.model = model
        self.psi = parameter_count(model)
        self.servers, self.workers = roles(comm.size, servers, colocated)
        self.ranges = chunks(self.psi + extra, len(self.servers))
        self.keys = [slice(part.start, min(part.stop, self.psi)) for part in self.ranges]
        self.works, self.serves = comm.rank in self.workers, comm.rank in self.servers
        self.dtype = np.dtype(arrays.default_dtype())
        self.lost: set[int] = set()  # workers that died, as far as this server knows
        group = comm.split(int(self.serves))
        if self.works:
            self.model = model.init(seed)
        if self.serves:
            index = self.servers.index(comm.rank)
            part, keys = self.ranges[index], self.keys[index]
            self.data: Array  # this server's range, with the extra slot if it has it
            self.total: Array
            if self.works:  # a worker with a server beside it: they share the arrays
                self.data = self.model.flat.data_and_loss[part]
                self.total = self.model.flat.grad_and_loss[part]
            else:
                values = initial_values(model, seed, keys)
                xp = arrays.module_of(values)
                self.data = xp.zeros(part.stop - part.start, self.dtype)
                self.data[: values.size] = values
                self.total = xp.zeros_like(self.data)
            self.owned = slice(0, keys.stop - keys.start)  # the keys in ``data`` and ``total``
            # A rule that needs norms of whole parameters gets them from all servers together.
            optimizer.bind(flat_slices(model), keys.start, lambda array: all_reduce(group, array))

    def update_keys(self) -> None:
        """One step of the optimizer on this server's range."""
        with self.comm.step("optimizer"):
            self.optimizer.step(self.data[self.owned], self.total[self.owned])

    def parameters(self) -> dict[str, np.ndarray]:
        """The servers' parameters: every server sends its range to everyone."""
        flat = self.gather_keys(arrays.module().empty(self.psi, self.dtype))
        host = arrays.to_host(flat)
        named = self.whole.named_parameters()
        return {
            name: host[where].reshape(named[name].declared)
            for name, where in flat_slices(self.whole).items()
        }

    def gather_keys(self, flat: Array) -> Array:
        """Fill ``flat`` with every server's range, on every rank."""
        for server, keys in zip(self.servers, self.keys, strict=True):
            if server == self.comm.rank:
                flat[keys] = self.data[self.owned]
            self.tell(flat[keys], server)
        return flat

    def tell(self, array: Array, server: int) -> None:
        """Copy ``array`` of one server to every rank that lives, in place."""
        if self.comm.rank != server:
            with self.servers_must_live():
                self.comm.recv(array, server)
            return
        for peer in range(self.comm.size):
            if peer != server and peer not in self.lost:
                with self.without_lost_workers(), self.comm.step(f"tell {peer}"):
                    self.comm.send(array, peer)

    # Checkpoints: all that matters is on the servers

    def checkpoint(self) -> dict[str, np.ndarray]:
        """What this rank must keep to go on later: a copy of the server's arrays, on the host.

        Empty on a worker. Save it as you like, for example with ``numpy.savez``.
        """
        if not self.serves:
            return {}
        kept = {"data": self.data[self.owned], **self.optimizer.state}
        saved = {name: arrays.to_host(array).copy() for name, array in kept.items()}
        return {**saved, "steps": np.array(self.optimizer.steps)}

    def restore(self, saved: dict[str, np.ndarray]) -> None:
        """Go on from ``checkpoint()`` of the same server; workers pull. Every rank must call it.

        The number of servers must be the same; workers may be more or fewer.
        """
        if self.serves:
            data = self.data[self.owned]
            if "data" not in saved or saved["data"].shape != data.shape:
                got = saved["data"].size if "data" in saved else "none"
                raise ValueError(
                    f"restore: server {self.servers.index(self.comm.rank)} of "
                    f"{len(self.servers)} owns {data.size} keys, the checkpoint has {got}: use "
                    "as many servers as when it was saved, and each one's own checkpoint"
                )
            data[...] = arrays.to_device(saved["data"])
            self.optimizer.prepare(data)
            for name, array in self.optimizer.state.items():
                array[...] = arrays.to_device(saved[name])
            self.optimizer.steps = int(saved["steps"])
        flat = self.model.flat.data if self.works else arrays.module().empty(self.psi, self.dtype)
        self.gather_keys(flat)

    # Failures

    @contextmanager
    def servers_must_live(self) -> Iterator[None]:
        """A server that dies inside becomes an error that says which keys are gone."""
        try:
            yield
        except RankLost as lost:
            if lost.rank not in self.servers:
                raise
            index = self.servers.index(lost.rank)
            keys = self.keys[index]
            names = ", ".join(
                f"{name}[{max(where.start, keys.start) - where.start}:"
                f"{min(where.stop, keys.stop) - where.start}]"
                for name, where in flat_slices(self.whole).items()
                if max(where.start, keys.start) < min(where.stop, keys.stop)
            )
            raise ServerLost(
                f"server {index} (rank {lost.rank}) has died, and with it keys {keys.start} to "
                f"{keys.stop - 1} of {self.psi}: {names}. Start again and restore() each server's "
                "last checkpoint"
            ) from lost

    @contextmanager
    def without_lost_workers(self) -> Iterator[None]:
        """A worker that dies inside is left out from now on."""
        try:
            with self.servers_must_live():
                yield
        except RankLost as lost:
            self.lost.add(lost.rank)
            if self.lost >= set(self.workers):
                raise RuntimeError("all workers have died: nobody is left to train") from lost

    def holds(self) -> dict[str, list[Array]]:
        held: dict[str, list[Array]] = {"parameters": [], "gradients": []}
        if self.works:
            held["parameters"].append(self.model.flat.data)
            held["gradients"].append(self.model.flat.grad)
        elif self.serves:
            held["parameters"].append(self.data[self.owned])
            held["gradients"].append(self.total[self.owned])
        held["optimizer"] = list(self.optimizer.state.values())
        return held

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize
