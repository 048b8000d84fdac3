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

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from minidist.collectives import ring
from minidist.collectives.ring import chunks
from minidist.comm.comm import Comm, RankLost
from minidist.engine import array as arrays
from minidist.engine.array import Array
from minidist.engine.seeds import generator
from minidist.nn.layers import Sequential
from minidist.nn.module import Module
from minidist.optim.clip import clip_by_global_norm
from minidist.optim.optimizer import Optimizer
from minidist.parallel.gradient_compression.compression import Compressor
from minidist.parallel.method import Method, parameter_count
from minidist.parallel.server.pushes import Pushes


class ServerLost(RuntimeError):
    """A server has died, and with it the only copy of its keys."""


Servers = int | Callable[[int], int]  # how many, or a function from the number of ranks to it


def roles(size: int, servers: Servers, colocated: bool) -> tuple[list[int], list[int]]:
    """The ranks that serve, and those that work. A rank alone does both, and so do all colocated.

    >>> roles(5, 2, colocated=False)
    ([0, 1], [2, 3, 4])
    """
    if colocated:
        return list(range(size)), list(range(size))
    count = servers(size) if callable(servers) else servers
    if count < 1:
        raise ValueError(f"a parameter server needs at least one server, not {count}")
    if size == count == 1:
        return [0], [0]
    if count >= size:
        raise ValueError(
            f"{count} servers and at least one worker need {count + 1} ranks, and there are "
            f"{size}: ask for fewer servers, or let every rank do both (colocated=True)"
        )
    return list(range(count)), list(range(count, size))


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
    that it steps with; ``optimizer`` has state on servers alone. A server beside a worker shares
    these arrays with it, or has its own if they live ``apart``.
    """

    def __init__(
        self,
        model: Sequential,
        loss: Module,
        optimizer: Optimizer,
        comm: Comm,
        seed: int,
        servers: Servers,
        colocated: bool,
        extra: int = 0,
        apart: bool = False,
        compressor: Callable[[], Compressor] | None = None,
        clip: float | None = None,
    ) -> None:
        super().__init__(model, loss, optimizer, comm, seed)
        if clip is not None and not clip > 0:
            raise ValueError(f"the norm to clip to must be positive, not {clip}")
        self.clip = clip
        self.model = model
        self.psi = parameter_count(model)
        self.servers, self.workers = roles(comm.size, servers, colocated)
        self.ranges = chunks(self.psi + extra, len(self.servers))
        self.keys = [slice(part.start, min(part.stop, self.psi)) for part in self.ranges]
        self.works, self.serves = comm.rank in self.workers, comm.rank in self.servers
        self.dtype = np.dtype(arrays.default_dtype())
        self.lost: set[int] = set()  # workers that died, as far as this server knows
        self.shares = comm.size == 1 or not apart
        self.desk: Comm = comm  # where this rank's server serves
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
            optimizer.bind(flat_slices(model), keys.start, self.sum_over_servers)

    def clients_of(self, rank: int) -> list[int]:
        """The servers, by index, to which this worker sends: all but the one beside it."""
        return [index for index, server in enumerate(self.servers) if server != rank]

    def update_keys(self) -> None:
        """One step of the optimizer on this server's range."""
        with self.desk.step("optimizer"):
            self.optimizer.step(self.data[self.owned], self.total[self.owned])

    def clip_total(self) -> None:
        """Scale ``total`` by the norm of the whole gradient: all servers agree on it."""
        if self.clip is not None:
            clip_by_global_norm(self.total[self.owned], self.clip, self.sum_over_servers)

    def norms(self) -> list[int]:
        """How many numbers the servers sum in each all-reduce of a step, to agree on norms."""
        return [1] * (self.clip is not None) + [2 * len(flat_slices(self.whole))] * (
            self.optimizer.layerwise
        )

    def sum_over_servers(self, numbers: np.ndarray) -> None:
        """Sum a few numbers over all servers, in place: each must call it."""
        with self.servers_must_live(), self.desk.step("agree on norms"):
            # A server's rank in this group is its index among the servers.
            ring.all_reduce(self.server_group, numbers)

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

        On a worker empty, but for the errors of compressed pushes. Save it as you like, for
        example with ``numpy.savez``.
        """
        kept = self.pushes.remembered()
        if self.serves:
            kept |= {"data": self.data[self.owned], **self.optimizer.state}
        saved = {name: arrays.to_host(array).copy() for name, array in kept.items()}
        return saved | ({"steps": np.array(self.optimizer.steps)} if self.serves else {})

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
            if set(self.optimizer.slots) <= saved.keys():  # not if it was saved before any step
                self.optimizer.prepare(data)
                for name, array in self.optimizer.state.items():
                    array[...] = arrays.to_device(saved[name])
            self.optimizer.steps = int(saved["steps"])
        for name, array in self.pushes.remembered().items():
            if name in saved:  # a worker that is new owes nothing yet
                array[...] = arrays.to_device(saved[name])
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

    def alive(self, clients: list[int]) -> Iterator[int]:
        """The workers that have not died, as far as is known when their turn comes."""
        return (worker for worker in clients if worker not in self.lost)

    def holds(self) -> dict[str, list[Array]]:
        held: dict[str, list[Array]] = {"parameters": [], "gradients": []}
        if self.works:
            held["parameters"].append(self.model.flat.data)
            held["gradients"].append(self.model.flat.grad)
        if self.serves and not (self.works and self.shares):
            held["parameters"].append(self.data[self.owned])
            held["gradients"].append(self.total[self.owned])
        held["gradients"] += self.pushes.holds()
        held["optimizer"] = list(self.optimizer.state.values())
        return held

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize
