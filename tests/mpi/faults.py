"""Runs under mpiexec: one rank does what its argument says, while the others wait for it."""

from __future__ import annotations

import sys

import numpy as np

from minidist.comm import Crash, launch

FAULT = sys.argv[1]


def main(comm):
    last = comm.size - 1
    if comm.rank == last:
        if FAULT == "exception":
            raise KeyError("lost my way")
        if FAULT == "crash":
            raise Crash("power cut")
        if FAULT.startswith("exit"):
            sys.exit(int(FAULT[4:]))
        if FAULT == "length":
            comm.send(np.zeros(3), 0)
        if FAULT == "longer":
            comm.send(np.zeros(5), 0)
    if comm.rank == 0:
        comm.recv(np.zeros(4), last)
    comm.barrier()


launch(main)
print("finished")
