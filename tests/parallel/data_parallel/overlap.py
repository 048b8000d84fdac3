"""When an overlapped step ends, worked out by hand for layers: what the tests hold it to.

a bucket's ring begins when it is full on both sides and the ring before it is over,
and a bucket is full when the backward of the last of its layers is through.
"""

import numpy as np

from minidist.collectives import all_reduce
from minidist.collectives.clocks import Clocks
from minidist.parallel.blocks import blocks_of, costs_of
from minidist.parallel.model_costs import parameter_slices, shape_of, training_seconds


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
    stream = Clocks(machine, size)
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
