"""Thousands of launches and splits in one process: MPI libraries have few communicators.

minidist run -n 2 tests/faults/launches.py 1000
"""

from __future__ import annotations

import sys
import time

import numpy as np

from minidist import launch
from minidist.collectives import all_reduce
from minidist.comm import Comm, print_once


def main(comm: Comm) -> float:
    alone = comm.split(comm.rank)
    everybody = comm.split(0, key=-comm.rank)
    array = np.ones(3)
    all_reduce(everybody, array)
    all_reduce(alone, array)
    return float(array.sum())


start, count = time.monotonic(), int(sys.argv[1])
for _ in range(count):
    sums = launch(main)
    assert sums == [3.0 * len(sums)] * len(sums), sums
seconds = time.monotonic() - start
print_once(f"{count} launches with {2 * count} splits in {seconds:.0f} s")
