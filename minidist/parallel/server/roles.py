"""Roles: which ranks serve and which work, and what happens when one of them dies.

    servers=2          ranks 0 and 1 serve, the others work
    colocated=True     every rank does both

A worker that dies is left out from then on. If a server dies, its keys are lost; an error names
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from minidist.comm.comm import RankLost
from minidist.parallel.method import Method
from minidist.parallel.model_costs import parameter_slices


class ServerLost(RuntimeError):
    """A server has died; it had the only copy of its keys."""


Servers = int | Callable[[int], int]  # the number of servers, or a function of the number of ranks


def roles(size: int, servers: Servers, colocated: bool) -> tuple[list[int], list[int]]:
    """(ranks that serve, ranks that work). A single rank does both; if ``colocated``, all do.

    Raises ValueError for less than one server, or too few ranks.

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
    """Base of the methods with servers: the ranks' roles, and which workers have died."""

    keys: list[slice]  # of the flat parameters, by server
    psi: int  # how many parameters there are

    def set_roles(self, servers: Servers, colocated: bool) -> None:
        """Set ``servers`` and ``workers``, and whether this rank serves and works."""
        self.servers, self.workers = roles(self.comm.size, servers, colocated)
        self.serves, self.works = self.comm.rank in self.servers, self.comm.rank in self.workers
        self.lost: set[int] = set()  # workers that died, as far as this server knows

    @contextmanager
    def servers_must_live(self) -> Iterator[None]:
        """If a server dies inside the block, raise ServerLost, with the keys that are lost."""
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
        """If a worker dies inside the block, leave it out from now on.

        Raises RuntimeError if it was the last one.
        """
        try:
            with self.servers_must_live():
                yield
        except RankLost as lost:
            self.lost.add(lost.rank)
            if self.lost >= set(self.workers):
                raise RuntimeError("all workers have died: nobody is left to train") from lost

    def alive(self, clients: list[int]) -> Iterator[int]:
        """The workers that have not died; each is checked only when the loop reaches it."""
        return (worker for worker in clients if worker not in self.lost)
