"""Runs on MPI ranks: one rank does what the first argument says, and the others go on."""

from __future__ import annotations

import os
import signal
import sys
import time

import numpy as np

from minidist import launch
from minidist.collectives import all_reduce, broadcast
from minidist.comm import Comm
from minidist.comm.environment import rank_in_environment

FAULT = sys.argv[1]
RANK, LAST = rank_in_environment(), 1  # the rank that is faulty


def here(fault: str) -> bool:
    return fault == FAULT and RANK == LAST


def outside(where: str) -> None:
    """What happens between launches."""
    if here(f"raise {where}"):
        raise ValueError(f"raised {where}")
    if here(f"exit {where}"):
        sys.exit(0)
    if here(f"sleep {where}"):
        time.sleep(100)


def first(comm: Comm) -> None:
    array = np.full(8, comm.rank + 1.0)
    if here("raise in a launch"):
        raise KeyError("lost my way")
    if here("exit 3"):
        sys.exit(3)
    if here("os._exit(0)"):
        os._exit(0)
    if here("SIGKILL"):
        os.kill(os.getpid(), signal.SIGKILL)
    if here("SIGSTOP"):
        os.kill(os.getpid(), signal.SIGSTOP)
    if here("sleep in a launch"):
        time.sleep(100)
    if FAULT == "other shape":
        array = np.ones(8 + comm.rank)
    if FAULT == "other dtype":
        array = np.ones(8, ("float64", "int64")[comm.rank % 2])
    if here("other operation"):
        broadcast(comm, array)
    else:
        op = "max" if here("other reduction") else "sum"
        algorithm = "ring" if here("other algorithm") else "recursive_doubling"
        all_reduce(comm, array, op=op, algorithm=algorithm)
    if FAULT == "isend that nobody receives" and RANK == LAST:
        comm.isend(array, 0, tag=5)
    if FAULT == "irecv that nobody sends" and RANK == LAST:
        comm.irecv(array, 0, tag=5)
    if FAULT == "none":
        assert (array == comm.size * (comm.size + 1) / 2).all()


outside("before the first")
launch(first)
outside("between two")
if not here("skip a launch"):
    launch(first)
outside("after the last")
sys.stdout.write("finished\n")
