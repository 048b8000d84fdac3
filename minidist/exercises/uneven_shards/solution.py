"""The gradient of a mean, from uneven shards: one right answer."""

import numpy as np


def gradient(comm, all_reduce, w, x, y):
    total = np.append(x.T @ (x @ w - y), len(x))  # the sum of gradients, and of samples
    all_reduce(comm, total)
    return total[:-1] / total[-1]
