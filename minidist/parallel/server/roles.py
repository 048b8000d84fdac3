"""Roles: which ranks serve and which work, and what happens when one of them dies.

    servers=2          ranks 0 and 1 serve, the others work
    colocated=True     every rank does both: a worker with a server beside it

A worker that dies is left out from then on. A server that dies takes its keys with it: that is an
error, which names them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from minidist.comm.comm import RankLost
from minidist.parallel.method import Method
from minidist.parallel.model_costs import parameter_slices


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


class ServersAndWorkers(Method):
    """Base of the methods with servers: who has which role, and who has died."""

    keys: list[slice]  # of the flat parameters, by server
    psi: int  # how many parameters there are

    def take_roles(self, servers: Servers, colocated: bool) -> None:
        """Say which ranks serve and work; on this rank, whether it does."""
        self.servers, self.workers = roles(self.comm.size, servers, colocated)
        self.serves, self.works = self.comm.rank in self.servers, self.comm.rank in self.workers
        self.lost: set[int] = set()  # workers that died, as far as this server knows

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
                for name, where in parameter_slices(self.whole).items()
                if max(where.start, keys.start) < min(where.stop, keys.stop)
            )
            raise ServerLost(
                f"server {index} (rank {lost.rank}) has died, and with it keys {keys.start} to "
                f"{keys.stop - 1} of {self.psi}: {names}. Start again and load() the last "
                "state() that was saved"
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
