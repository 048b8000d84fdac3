"""Send only the largest numbers, and forget nothing: one right answer."""

import numpy as np


class TopK:
    def __init__(self, comm, exchange, k, length):
        self.comm, self.exchange, self.k = comm, exchange, k
        self.residual = np.zeros(length)

    def average(self, grad):
        corrected = grad + self.residual
        positions = np.argsort(-np.abs(corrected), kind="stable")[: self.k]
        values = corrected[positions]
        self.residual = corrected
        self.residual[positions] = 0
        total = np.zeros_like(grad)
        for others, where in self.exchange(self.comm, values, positions):
            total[where] += others
        return total / self.comm.size
