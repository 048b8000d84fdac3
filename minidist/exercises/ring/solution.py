"""Ring all-reduce: one right answer."""

import numpy as np


def all_reduce(comm, array):
    p, rank = comm.size, comm.rank
    left, right = (rank - 1) % p, (rank + 1) % p
    parts = np.array_split(array, p)  # views: writing into them writes into the array
    incoming = np.empty_like(parts[0])
    for round in range(p - 1):
        arrived = incoming[: parts[(rank - round - 1) % p].size]
        comm.sendrecv(parts[(rank - round) % p], right, arrived, left)
        parts[(rank - round - 1) % p] += arrived
    for round in range(p - 1):
        comm.sendrecv(parts[(rank - round + 1) % p], right, parts[(rank - round) % p], left)
