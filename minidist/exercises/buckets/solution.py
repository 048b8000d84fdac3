"""Buckets that are sent while the backward still runs: one right answer."""

import numpy as np


class Buckets:
    def __init__(self, comm, all_reduce, limit):
        self.comm, self.all_reduce, self.limit = comm, all_reduce, limit
        self.open, self.sent = [], []

    def ready(self, grad):
        self.open.append(grad)
        if sum(one.size for one in self.open) >= self.limit:
            self.send()

    def send(self):
        bucket = np.concatenate(self.open)
        self.sent.append((self.comm.spawn(self.all_reduce, bucket), bucket, self.open))
        self.open = []

    def finish(self):
        if self.open:
            self.send()
        for future, bucket, grads in self.sent:
            future.wait()
            start = 0
            for grad in grads:
                grad[...] = bucket[start : start + grad.size]
                start += grad.size
        self.sent = []
