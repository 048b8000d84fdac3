"""Runs under mpiexec: rank 0 waits for whoever is first, and prints how busy it was meanwhile."""

import time

import numpy as np

from minidist import launch
from minidist.comm.comm import ANY


def main(comm):
    message = np.zeros(3)
    if comm.rank:
        time.sleep(0.5)
        comm.send(message + comm.rank, 0, tag=4)
        return 0.0
    wall, cpu = time.perf_counter(), time.process_time()
    sources = {comm.recv(message, ANY, tag=4) for _ in range(comm.size - 1)}
    assert sources == set(range(1, comm.size)), sources
    return (time.process_time() - cpu) / (time.perf_counter() - wall)


busy = launch(main)[0]
assert busy < 0.5, f"the server kept a core busy {busy:.0%} of the time that it waited"
