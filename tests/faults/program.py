"""Runs on MPI ranks: one rank does what the first argument says, and the others go on."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import time
from threading import Thread

import numpy as np

from minidist import launch
from minidist.collectives import all_reduce, broadcast
from minidist.comm import Comm
from minidist.comm.environment import launched_size, rank_in_environment

FAULT = sys.argv[1]
FAULTY = 1  # the rank
LOCAL = launched_size() is None  # all ranks are in this process, so all are faulty outside launch


def here(fault: str, rank: int = FAULTY if LOCAL else rank_in_environment()) -> bool:
    return fault == FAULT and rank == FAULTY


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
    if here("exit 0", comm.rank):
        sys.exit(0)
    if here("raise in a launch", comm.rank):
        raise KeyError("lost my way")
    if here("exit 3", comm.rank):
        sys.exit(3)
    if here("os._exit(0)", comm.rank):
        os._exit(0)
    if here("SIGKILL", comm.rank):
        os.kill(os.getpid(), signal.SIGKILL)
    if here("SIGSTOP", comm.rank):
        os.kill(os.getpid(), signal.SIGSTOP)
    if here("sleep in a launch", comm.rank):
        time.sleep(100)
    if FAULT == "other shape":
        array = np.ones(8 + comm.rank)
    if FAULT == "other dtype":
        array = np.ones(8, ("float64", "int64")[comm.rank % 2])
    if here("other operation", comm.rank):
        broadcast(comm, array)
    else:
        op = "max" if here("other reduction", comm.rank) else "sum"
        algorithm = "ring" if here("other algorithm", comm.rank) else "recursive_doubling"
        all_reduce(comm, array, op=op, algorithm=algorithm)
    if FAULT == "isend that nobody receives" and comm.rank == FAULTY:
        comm.isend(array, 0, tag=5)
    if FAULT == "irecv that nobody sends" and comm.rank == FAULTY:
        comm.irecv(array, 0, tag=5)
    if FAULT == "both send first":
        large = np.zeros(1 << 20)
        comm.send(large, (comm.rank + 1) % comm.size)
        comm.recv(large, (comm.rank - 1) % comm.size)
    if FAULT == "a scalar":
        all_reduce(comm, array.sum())
    if FAULT == "root out of range":
        broadcast(comm, array, root=comm.size)
    if here("raise in a thread", comm.rank):
        Thread(target=lambda: 1 / 0).start()
        time.sleep(1)
    if FAULT == "message of another dtype" and comm.rank == FAULTY:
        comm.send(np.zeros(4, "int64"), 0)
    if FAULT == "message of another dtype" and comm.rank == 0:
        comm.recv(np.zeros(4), FAULTY)
    if here("length", comm.rank):
        comm.send(np.zeros(3), 0)
    if FAULT == "length" and comm.rank == 0:
        comm.recv(np.zeros(4), FAULTY)
    if FAULT == "none":
        assert (array == comm.size * (comm.size + 1) / 2).all()


outside("before the first")
launch(first, 3)
outside("between two")
if not here("skip a launch"):
    launch(first, 3)
outside("after the last")
if here("raise at exit"):
    atexit.register(lambda: 1 / 0)
if here("sleep at the end of MPI") and not LOCAL:
    from minidist.comm.mpi import process

    process.finalise = lambda mpi: time.sleep(100)
sys.stdout.write("finished\n")
