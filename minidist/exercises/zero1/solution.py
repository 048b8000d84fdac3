"""ZeRO stage 1: one right answer."""

import numpy as np


class Zero1:
    def __init__(self, comm, reduce_scatter, all_gather, adam, w):
        self.comm, self.reduce_scatter, self.all_gather = comm, reduce_scatter, all_gather
        self.adam, self.w, self.t = adam, w, 0
        self.part = np.array_split(w, comm.size)[comm.rank]
        self.m, self.v = np.zeros_like(self.part), np.zeros_like(self.part)

    def step(self, grad):
        self.t += 1
        own = self.reduce_scatter(self.comm, grad)
        self.adam(self.part, own, self.m, self.v, self.t)
        self.all_gather(self.comm, self.w)
