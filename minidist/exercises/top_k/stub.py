"""Exercise: send only the largest numbers, and forget nothing.

Most numbers of a gradient are small. Top-k sends the k numbers of largest absolute value, each with
its position, and leaves the rest out. Left out for good, small numbers that always point the same
way would never arrive. *Error feedback* keeps what was left out and adds it to the next gradient:

    corrected = gradient + residual
    sent      = the k largest of ``corrected`` (by absolute value), with their positions
    residual  = corrected - sent          0 where something was sent

So nothing is lost, only late: what was sent so far, plus the residual, is the sum of all gradients.

Every rank picks positions of its own. They cannot be added up on the way, so every rank sends its k
pairs to every other one, and each adds up what it gets:

    sent by a rank    k(p - 1) values, and k(p - 1) positions

To do: write the class ``TopK``. ``exchange(comm, values, positions)`` returns a list with (values,
positions) of every rank, this one included; values are float64, positions int64. k is at most the
length of the gradient.

Lin et al., "Deep gradient compression", arXiv 1712.01887, section 3.

    minidist check top_k mine.py
"""


class TopK:
    """Averages gradients over all ranks by sending k numbers of each."""

    def __init__(self, comm, exchange, k, length):
        raise NotImplementedError("write TopK")

    def average(self, grad):
        """The sum of what all ranks sent, divided by the number of ranks; of ``grad``'s length.

        ``grad`` stays as it is.
        """
        raise NotImplementedError("write TopK.average")
