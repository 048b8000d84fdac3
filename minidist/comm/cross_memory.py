"""Arrays that other ranks read and write where they are: see ``Comm.cross_memory``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from minidist.engine.array import Array, work


class CrossMemory(ABC):
    """One array of each rank at a time, which the others reach without this rank's help.

    Only messages order these accesses: an array is exposed before the others may use it, and must
    live until they have. Nothing is checked here: all must agree on dtype and length.
    """

    @abstractmethod
    def expose(self, array: Array) -> None:
        """From now on the other ranks reach this one-dimensional, contiguous array on the host."""

    @abstractmethod
    def read(self, rank: int, start: int, into: Array) -> None:
        """Copy elements of the array of ``rank``, from ``start`` on, until ``into`` is full."""

    @abstractmethod
    def write(self, rank: int, start: int, array: Array) -> None:
        """Copy ``array`` to the array of ``rank``, from its element ``start`` on."""


class OneProcess(CrossMemory):
    """Of ranks in one process: each finds the others' arrays in a list.

    ``exposed``: such a list for each rank, the same objects on all ranks.
    """

    def __init__(self, exposed: Sequence[list[Array]], rank: int) -> None:
        self.exposed = exposed
        self.own = exposed[rank]

    def expose(self, array: Array) -> None:
        self.own[:] = [array]

    def read(self, rank: int, start: int, into: Array) -> None:
        self.copy(into, self.exposed[rank][0][start : start + into.size])

    def write(self, rank: int, start: int, array: Array) -> None:
        self.copy(self.exposed[rank][0][start : start + array.size], array)

    @staticmethod
    def copy(into: Array, array: Array) -> None:
        beyond = work.beyond
        into[...] = array
        work.beyond = beyond  # no kernel of the array's own module copies it
