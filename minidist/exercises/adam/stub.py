"""Exercise: Adam, on a slice.

Kingma, Ba, "Adam", arXiv 1412.6980, algorithm 1. With the gradient g of step t (1, 2, 3, ...):

    m = b1 * m + (1 - b1) * g              an average of gradients
    v = b2 * v + (1 - b2) * g * g          an average of their squares, number by number
    M = m / (1 - b1 ** t)                  both start at 0, so the first averages are too small:
    V = v / (1 - b2 ** t)                  these are corrected
    w = w - lr * M / (sqrt(V) + eps)

Everything happens in place: w, m and v are slices of long arrays, which other parts of the program
see. That is how ZeRO works: each rank steps a slice.

To do: write ``adam(w, g, m, v, t, lr, b1, b2, eps)``: change w, m and v in place, leave g as it is.

    minidist check adam mine.py
"""


def adam(w, g, m, v, t, lr, b1, b2, eps):
    """One step of Adam, in place; ``t`` counts from 1."""
    raise NotImplementedError("write adam")
