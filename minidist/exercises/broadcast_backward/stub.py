"""Exercise: the backward of a broadcast.

NumPy lets shapes differ: in y = x + b, with x (4, 3) and b (3,), every row of x gets the same b.
One number of b is used four times, so its gradient is the *sum* of four:

    x (4, 3)    b (3,)          grad (4, 3)          gradient of b (3,)
    . . .                       g00 g01 g02
    . . .   +   b0 b1 b2        g10 g11 g12    ->    sums of the columns
    . . .                       g20 g21 g22
    . . .                       g30 g31 g32

The rule of broadcasting: shapes are aligned at their last axis; missing axes in front count as 1;
an axis of length 1 is repeated as often as it takes. So the backward sums over every axis that was
missing or repeated, and gives the gradient the shape that the tensor has:

    shape (3,)        grad (4, 3)       -> sum over axis 0
    shape (4, 1)      grad (4, 3)       -> sum over axis 1, and the axis stays, with length 1
    shape ()          grad (4, 3)       -> the sum of everything

To do: write ``unbroadcast(grad, shape)``: the gradient of a tensor of that shape, which was
broadcast to ``grad.shape``. Do not change ``grad``.

    minidist check broadcast_backward mine.py
"""


def unbroadcast(grad, shape):
    """``grad`` summed over what broadcasting repeated, in ``shape``."""
    raise NotImplementedError("write unbroadcast")
