"""Exercise: two layers cut over the ranks, with one sum.

Two linear layers with a ReLU between, y = relu(x @ a + b) @ c + d, can be too large for one rank.
Megatron cuts the first by *columns* and the second by *rows*:

    rank 0   x @ a[:, first half]  + b[first half]   -> h0    h0 @ c[first half]   -> y0
    rank 1   x @ a[:, second half] + b[second half]  -> h1    h1 @ c[second half]  -> y1

    y = y0 + y1 + d

Each hidden unit lives on one rank, with its bias; the ReLU needs nobody else's numbers. Only at the
end do the ranks need one another: y is a sum over all hidden units. The bias d belongs to the sum,
not to its parts.

The backward mirrors this. The gradient of y is the same on all ranks and needs no message; each
rank finds the gradients of its own parts alone; the gradient of x is a sum over all hidden units.

    messages    one all-reduce of y in the forward, one of the gradient of x in the backward

To do: write both functions. ``a``, ``b``, ``c`` are this rank's parts; ``d`` is whole on every
rank. ``all_reduce(comm, array)`` replaces a float64 array of any shape, in place, by the sum over
all ranks.

    forward(comm, all_reduce, x, a, b, c, d)
        returns (y, h); h are the own hidden units after the ReLU, which the backward gets back
    backward(comm, all_reduce, grad, x, h, a, b, c, d)
        returns the gradients of (x, a, b, c, d): of a, b and c those of the own parts

Do not change x, grad and the parameters: other parts of the program still use them.

Shoeybi et al., "Megatron-LM", arXiv 1909.08053, section 3.

    minidist check tensor_parallel mine.py
"""


def forward(comm, all_reduce, x, a, b, c, d):
    """(y, own hidden units)."""
    raise NotImplementedError("write forward")


def backward(comm, all_reduce, grad, x, h, a, b, c, d):
    """The gradients of x, a, b, c and d, given that of y."""
    raise NotImplementedError("write backward")
