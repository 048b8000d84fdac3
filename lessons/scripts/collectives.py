"""Run every collective by every algorithm: check the result, and print rank 0's messages.

    mpirun -n 4 python lessons/scripts/collectives.py

Without mpirun the four ranks run in this one process. To draw all messages on a time axis:

    minidist trace lessons/scripts/collectives.py --ranks 4
"""

import numpy as np

from minidist import launch
from minidist.collectives import (
    ALL_GATHER,
    ALL_REDUCE,
    ALL_TO_ALL,
    BROADCAST,
    GATHER,
    REDUCE,
    REDUCE_SCATTER,
    SCATTER,
    barrier,
    chunks,
)

LENGTH = 1000


def main(comm):
    p, rank = comm.size, comm.rank
    # Different numbers on each rank. Every rank has the numbers of all, to check the results.
    everybody = [np.arange(LENGTH) + 1000 * r for r in range(p)]
    total = sum(everybody)
    parts = chunks(LENGTH, p)  # part r belongs to rank r
    own = parts[rank]
    gathered = np.concatenate([x[part] for x, part in zip(everybody, parts, strict=True)])

    def show(what, algorithm, call, got, expected):
        before, nbytes = comm.trace.sent.messages, comm.trace.sent.nbytes
        call()
        assert np.array_equal(got, expected), f"{what} by {algorithm}, rank {rank}: {got}"
        if rank == 0:
            messages, nbytes = comm.trace.sent.messages - before, comm.trace.sent.nbytes - nbytes
            print(f"{what:15}{algorithm:20}{messages:4} messages {nbytes:7,} bytes")

    for table, what, where, expected in [
        (ALL_REDUCE, "all-reduce", slice(None), total),
        (REDUCE_SCATTER, "reduce-scatter", own, total[own]),
        (ALL_GATHER, "all-gather", slice(None), gathered),
        (BROADCAST, "broadcast", slice(None), everybody[0]),
        (REDUCE, "reduce", slice(None) if rank == 0 else slice(0), total),
        (GATHER, "gather", slice(None) if rank == 0 else slice(0), gathered),
        (SCATTER, "scatter", own, everybody[0][own]),
    ]:
        for name, algorithm in table.items():
            array = everybody[rank].copy()
            wanted = expected if where != slice(0) else expected[:0]  # only the root has it
            show(what, name, lambda a=array, f=algorithm: f(comm, a), array[where], wanted)
    for name, algorithm in ALL_TO_ALL.items():
        blocks, into = np.full((p, 10), rank), np.zeros((p, 10), int)  # block r goes to rank r
        came = np.repeat(np.arange(p), 10).reshape(p, 10)
        show("all-to-all", name, lambda b=blocks, i=into, f=algorithm: f(comm, b, i), into, came)
    show("barrier", "dissemination", lambda: barrier(comm), 0, 0)


if __name__ == "__main__":
    launch(main, ranks=4)
