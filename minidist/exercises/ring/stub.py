"""Exercise: ring all-reduce.

Every rank has an array of n numbers. Afterwards every rank shall have the sum of all of them, in
place. On a ring, each rank sends to its right neighbour alone, and receives from its left one.

Cut the array into p chunks (p ranks; the first n mod p chunks are one number longer). For p = 3:

    reduce-scatter                 chunk 0     chunk 1     chunk 2
      rank 0 has                     a0          a1          a2
      rank 1 has                     b0          b1          b2
      rank 2 has                     c0          c1          c2
    round 1: r sends chunk r, adds chunk r - 1 that comes from the left
      rank 0                         a0          a1        a2+c2
      rank 1                       b0+a0         b1          b2
      rank 2                         c0        c1+b1         c2
    round 2: r sends chunk r - 1, adds chunk r - 2
      rank 0                         a0      a1+c1+b1      a2+c2
      rank 1                       b0+a0         b1      b2+a2+c2
      rank 2                     c0+b0+a0      c1+b1         c2

Now each chunk is complete on one rank. The all-gather passes the complete chunks around in p - 1
more rounds. Together, with n numbers of e bytes:

    messages a rank   2(p - 1)
    bytes a rank      2ne(p - 1)/p, if p divides n
    memory            the array, and one chunk more

To do: write ``all_reduce(comm, array)``. You have

    comm.rank, comm.size
    comm.sendrecv(send, to, recv, source)    sends one array while it receives another
    comm.send(array, to), comm.recv(array, source)

The arrays that are sent and received are NumPy arrays in one piece (a slice a[2:5] is one). It has
to work for one rank, for arrays shorter than the number of ranks, and for an empty array.

    minidist check ring mine.py
"""


def all_reduce(comm, array):
    """Replace ``array`` (1-D, in place) by the sum of all ranks' arrays."""
    raise NotImplementedError("write all_reduce")
