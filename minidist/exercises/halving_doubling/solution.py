"""All-reduce by halving and doubling: one right answer."""

import numpy as np


def all_reduce(comm, array):
    low, high, halves = 0, array.size, []
    incoming = np.empty((array.size + 1) // 2)
    distance = comm.size // 2
    while distance:
        partner, middle = comm.rank ^ distance, (low + high) // 2
        keep, give = (low, middle), (middle, high)
        if comm.rank & distance:
            keep, give = give, keep
        arrived = incoming[: keep[1] - keep[0]]
        comm.sendrecv(array[slice(*give)], partner, arrived, partner)
        array[slice(*keep)] += arrived
        halves.append((partner, keep, give))
        low, high = keep
        distance //= 2
    for partner, keep, give in reversed(halves):
        comm.sendrecv(array[slice(*keep)], partner, array[slice(*give)], partner)
