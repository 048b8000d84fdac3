"""Exercise: all-reduce by way of one rank.

The simplest all-reduce: everybody sends its array to rank 0, which adds them up, and sends the sum
back to everybody.

    rank 0   a0 + a1 + a2 ──▶ sum          rank 0 receives p - 1 arrays, and sends p - 1
    rank 1   a1 ▲        ╰──▶ sum          each other rank sends one, and receives one
    rank 2   a2 ▲        ╰──▶ sum

With n numbers of e bytes on p ranks:

    messages      p - 1 by rank 0, 1 by each other one
    bytes         ne(p - 1) by rank 0, ne by each other one
    memory        the array, and one more of the same length on rank 0

Rank 0 is the bottleneck: its time grows with p. What a ring does better is another exercise.

To do: write ``all_reduce(comm, array)``: replace the array, in place, by the sum over all ranks.
You have comm.rank, comm.size, comm.send(array, to) and comm.recv(array, source), which writes what
it receives into the array.

    minidist check central mine.py
"""


def all_reduce(comm, array):
    """Replace ``array`` (1-D, in place) by the sum of all ranks' arrays."""
    raise NotImplementedError("write all_reduce")
