"""Runs under mpiexec: one rank does what its argument says, while the others wait for it."""

from __future__ import annotations

import sys
import time

import numpy as np

from minidist.collectives import all_reduce
from minidist.comm import CommError, Crash, launch

FAULT = sys.argv[1]


def main(comm):
    last = comm.size - 1
    if FAULT == "both send first":
        large, other = np.zeros(1 << 20), np.zeros(1 << 20)
        comm.send(large, 1 - comm.rank, tag=7)
        comm.recv(other, 1 - comm.rank, tag=7)
    if FAULT == "stall":
        if comm.rank == last:
            time.sleep(60)
        all_reduce(comm, np.zeros(6), algorithm="ring")
    if FAULT == "waits":  # started earlier, and on the communication stream
        comm.spawn(lambda stream: None).wait()
        if comm.rank == last:
            time.sleep(60)
        if comm.rank == 0:
            comm.irecv(np.zeros(5, np.float32), last, tag=3).wait()
        comm.spawn(lambda stream: stream.send(np.zeros(1 << 20), last)).wait()
    if FAULT == "split" and comm.rank != last:
        comm.split(0)
    if FAULT == "patient":  # longer than the limit in all, but not in one call
        for _ in range(8):
            time.sleep(0.25)
            comm.barrier()
        return
    if FAULT == "computes":  # for longer than the limit, with a receive posted and an error caught
        posted = comm.irecv(np.zeros(1), 1 - comm.rank, tag=1)
        comm.isend(np.zeros(3), 1 - comm.rank)
        try:
            comm.recv(np.zeros(4), 1 - comm.rank)
        except CommError:
            time.sleep(3)
            comm.isend(np.zeros(1), 1 - comm.rank, tag=1)
            posted.wait()
            return
    if FAULT == "unfinished":  # nobody waits for what was spawned, and nobody sends
        comm.spawn(lambda stream: stream.recv(np.zeros(3), 1 - stream.rank))
        return
    if FAULT == "stream":  # what nobody waits for, either
        comm.spawn(lambda stream: np.zeros(2)[stream.rank + 1])
        if comm.rank == last:
            return
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
