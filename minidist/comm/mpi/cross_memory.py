"""The memory of other processes of this machine, read and written by the kernel (Linux).

``process_vm_readv`` and ``process_vm_writev`` copy between two processes directly. The kernel
allows it between processes of one user, unless it was told not to: a container may forbid it, and
so does ``kernel.yama.ptrace_scope=1``, which is the default of Ubuntu and others.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from minidist.comm.cross_memory import CrossMemory
from minidist.comm.errors import CommError, NoSharedMemory
from minidist.engine.array import Array, address_of


class Memory(ctypes.Structure):
    """The kernel's ``struct iovec``: an address and a number of bytes."""

    _fields_ = (("address", ctypes.c_void_p), ("nbytes", ctypes.c_size_t))


@cache
def kernel_calls() -> tuple[Any, Any]:
    """The two functions of the C library, to read and to write; None each if it has none."""
    library = ctypes.CDLL(None, use_errno=True)
    found = [getattr(library, f"process_vm_{what}v", None) for what in ("read", "write")]
    for function in filter(None, found):
        function.restype = ctypes.c_ssize_t  # no argtypes: a call would take twice as long
    return found[0], found[1]


class Processes(CrossMemory):
    """Of ranks that are processes ``pids``; ``addresses`` of what each exposes are shared."""

    def __init__(self, rank: int, pids: Sequence[int], addresses: Sequence[np.ndarray]) -> None:
        self.rank, self.pids, self.addresses = rank, pids, addresses
        self.readv, self.writev = kernel_calls()
        self.here, self.there = Memory(), Memory()
        one, flags = ctypes.c_ulong(1), ctypes.c_ulong(0)
        self.places = ctypes.byref(self.here), one, ctypes.byref(self.there), one, flags

    def expose(self, array: Array) -> None:
        self.addresses[self.rank][0] = address_of(array)

    def read(self, rank: int, start: int, into: Array) -> None:
        self.copy(self.readv, rank, start, into)

    def write(self, rank: int, start: int, array: Array) -> None:
        self.copy(self.writev, rank, start, array)

    def copy(self, call: Any, rank: int, start: int, array: Array) -> None:
        """Between ``array`` and that of ``rank``, from its element ``start`` on."""
        # In a third of the time that address_of takes:
        self.here.address = ctypes.addressof(ctypes.c_char.from_buffer(array))
        self.there.address = self.addresses[rank].item() + start * array.itemsize
        self.here.nbytes = self.there.nbytes = nbytes = array.nbytes
        copied = call(self.pids[rank], *self.places)
        if copied != nbytes:
            why = os.strerror(ctypes.get_errno()) if copied < 0 else f"only {copied} bytes"
            raise CommError(
                f"rank {self.rank}: the kernel did not copy {nbytes} bytes between this process "
                f"and that of rank {rank} ({self.pids[rank]}): {why}"
            )


def reach(mpi: Any, comm: Any, addresses: Sequence[np.ndarray]) -> Processes:
    """Access to the processes of all ranks of ``comm``; ``addresses``: an integer of each, shared.

    As a trial each rank reads a random number of each. If one cannot, all raise NoSharedMemory.
    """
    mine = np.frombuffer(os.urandom(8), np.int64).copy()
    every = np.empty((comm.Get_size(), 2), np.int64)  # by rank: its process, its number
    own = np.array([os.getpid(), mine[0]])
    addresses[comm.Get_rank()][0] = address_of(mine)
    comm.Allgather(own, every)
    found = Processes(comm.Get_rank(), every[:, 0].tolist(), addresses)
    why = hindrance(found, every[:, 1].tolist())
    failed = np.array([bool(why)])
    comm.Allreduce(mpi.IN_PLACE, failed, mpi.LOR)  # and all have read
    if failed[0]:
        raise NoSharedMemory(
            f"cross_memory(): {why or 'another rank cannot reach all others'}. Allow it (sysctl "
            "kernel.yama.ptrace_scope=0, docker run --cap-add=SYS_PTRACE), or choose an algorithm "
            "that needs no such access, such as 'shared_memory' or 'ring'"
        )
    return found


def hindrance(processes: Processes, numbers: Sequence[int]) -> str:
    """Why this rank cannot read every rank's number; "" if it can."""
    if None in (processes.readv, processes.writev):
        return "this C library cannot read another process's memory"
    got = np.empty(1, np.int64)
    try:
        for rank, number in enumerate(numbers):
            processes.read(rank, 0, got)
            if got[0] != number:  # of another container, say
                return f"process {processes.pids[rank]} is not rank {rank}, as seen from here"
    except CommError as error:
        return str(error)
    return ""
