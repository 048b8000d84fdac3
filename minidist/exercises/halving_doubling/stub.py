"""Exercise: all-reduce by halving and doubling.

A ring needs 2(p - 1) messages one after another. With p = 2, 4, 8, ... ranks, 2 log2 p are enough,
and not one byte more is sent. Ranks meet in pairs whose numbers differ in one bit:

    halving, p = 4, parts 0 to 3 of the array
      distance 2    0 <-> 2, 1 <-> 3     each pair divides the array: the lower rank keeps the
                                         first half, the upper one the second; each sends the
                                         other half, and adds what arrives
      distance 1    0 <-> 1, 2 <-> 3     the same with the half that is left
    now each rank has a quarter, complete

    doubling        the same pairs in the opposite order: distance 1, then 2. Each sends what it
                    has, and receives the other's

With n numbers of e bytes (n is not always divisible: halves then differ by one number):

    messages a rank   2 log2 p
    bytes a rank      2ne(p - 1)/p, if p divides n
    memory            the array, and half of it more

Rabenseifner, "Optimization of collective reduction operations", ICCS 2004.

To do: write ``all_reduce(comm, array)`` for p = 1, 2, 4, 8. You have comm.rank, comm.size and
comm.sendrecv(send, to, recv, source).

    minidist check halving_doubling mine.py
"""


def all_reduce(comm, array):
    """Replace ``array`` (1-D, in place) by the sum of all ranks' arrays."""
    raise NotImplementedError("write all_reduce")
