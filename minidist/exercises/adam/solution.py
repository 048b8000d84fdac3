"""Adam, on a slice: one right answer."""

import numpy as np


def adam(w, g, m, v, t, lr, b1, b2, eps):
    m[...] = b1 * m + (1 - b1) * g
    v[...] = b2 * v + (1 - b2) * g * g
    w -= lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
