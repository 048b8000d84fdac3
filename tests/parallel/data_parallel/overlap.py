"""When an overlapped step ends, worked out by hand for layers: what the tests hold it to.

a bucket's ring begins when it is full on both sides and the ring before it is over,
and a bucket is full when the backward of the last of its layers is through.
"""

import numpy as np

from minidist.collectives import all_reduce
from minidist.collectives.partition import chunks
from minidist.comm.machine import Ports
from minidist.parallel.blocks import blocks_of, costs_of
from minidist.parallel.model_costs import parameter_slices, shape_of, training_seconds


class Stream:
    """Ring all-reduces of ranks that do not begin together: a clock for each rank.

    A message from r to r + 1 begins when both are there and their ports free; then the receiver
    adds. From a common start this is the ring's closed formula.
    """

    def __init__(self, machine, size):
        self.machine, self.size = machine, size
        self.ports, self.now = Ports(size), [0.0] * size

    def wait_for(self, times):
        self.now = [max(pair) for pair in zip(self.now, times, strict=True)]

    def all_reduce(self, length, itemsize):
        p = self.size
        parts = [(part.stop - part.start) * itemsize for part in chunks(length, p)]
        for turn in range(2 * (p - 1)):
            adding = turn < p - 1
            sent = [parts[(rank - turn + (not adding) * p) % p] for rank in range(p)]
            ends = []
            for rank in range(p):
                ready = max(self.now[rank], self.now[(rank + 1) % p])
                seconds = self.machine.message(sent[rank])
                ends.append(self.ports.carry(rank, (rank + 1) % p, ready, seconds))
            self.now = [
                max(ends[rank], ends[rank - 1]) + adding * self.machine.reduce(sent[rank - 1])
                for rank in range(p)
            ]


def backward_left(model, shape):
    """FLOPs of the backward that are left when a parameter's gradient is ready, by name."""
    left, after, input_grad = {}, 0, False
    for (prefix, block), cost in zip(blocks_of(model).items(), costs_of(model, shape), strict=True):
        for name in block.named_parameters(prefix):
            left[name] = after
        after += cost.weight_flops + (cost.input_flops if input_grad else 0)
        input_grad = input_grad or bool(block.named_parameters())
    return left


def overlapped_seconds(method, batch, machine):
    """Seconds of a step of ``Overlapped`` on a list of layers, from a common start."""
    size, itemsize = method.comm.size, method.itemsize
    parts = [batch.shard(rank, size).microbatches(method.microbatches) for rank in range(size)]
    whole = [training_seconds(method.whole, p, machine, rank) for rank, p in enumerate(parts)]
    left = [backward_left(method.whole, shape_of(p[-1])) for p in parts]
    stream = Stream(machine, size)
    for bucket in method.sync.cut(parameter_slices(method.whole), itemsize, True):
        stream.wait_for(
            [
                whole[rank] - machine.compute(min(after[name] for name in bucket.names), rank)
                for rank, after in enumerate(left)
            ]
        )
        stream.all_reduce(bucket.part.stop - bucket.part.start, itemsize)
    stream.wait_for(whole)
    return max(stream.now)


def check_overlap(comm, method, batch, machine):
    """A step takes that long, on the slowest rank."""
    comm.barrier()
    start = comm.time()
    method.step(batch)
    slowest = np.array([comm.time() - start])
    all_reduce(comm, slowest, "max")
    expected = overlapped_seconds(method, batch, machine)
    gap = abs(slowest[0] - expected)
    assert gap <= 1e-9 * expected, f"a step took {slowest[0]} s, by hand {expected} s"
