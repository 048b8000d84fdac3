"""Two layers cut over the ranks: one right answer."""

import numpy as np


def forward(comm, all_reduce, x, a, b, c, d):
    h = np.maximum(x @ a + b, 0)
    y = h @ c
    all_reduce(comm, y)
    return y + d, h


def backward(comm, all_reduce, grad, x, h, a, b, c, d):
    grad_h = np.where(h > 0, grad @ c.T, 0)
    grad_x = grad_h @ a.T
    all_reduce(comm, grad_x)
    return grad_x, x.T @ grad_h, grad_h.sum(axis=0), h.T @ grad, grad.sum(axis=0)
