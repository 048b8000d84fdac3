"""Exercise: buckets that are sent while the backward still runs.

The backward makes the gradients of the last layer first. Whoever waits until all of them are there,
and then sends them, leaves the network idle meanwhile, and then the processor. So send a part as
soon as it is complete:

    backward      ▇▇ w4 ▇▇ w3 ▇▇ w2 ▇▇ w1
    all at once                            ───────── all ─────────
    each apart          ─w4─  ─w3─  ─w2─  ─w1─       a message costs a latency: many of them
    in buckets                ──w4,w3──   ──w2,w1──

A bucket collects gradients until it has at least ``limit`` numbers; then it is sent, whole, on the
rank's communication stream, while the backward goes on:

    future = comm.spawn(all_reduce, bucket)     runs all_reduce(stream, bucket) meanwhile
    future.wait()                               returns when it is done

Every rank must send the same buckets in the same order. Here all ranks make their gradients in the
same order, so it is enough that a bucket depends on the sizes alone.

To do: write the class ``Buckets``. Its methods are called like this, on every rank:

    buckets = Buckets(comm, all_reduce, limit)
    for each layer, the last one first:
        ...  the backward computes ``grad``, a 1-D array
        buckets.ready(grad)
    buckets.finish()          afterwards every grad holds, in place, the sum over all ranks

The next backward uses the same object again.

    minidist check buckets mine.py
"""


class Buckets:
    """Sums gradients over all ranks, in buckets, while the backward goes on."""

    def __init__(self, comm, all_reduce, limit):
        raise NotImplementedError("write Buckets")

    def ready(self, grad):
        """``grad`` is complete: put it into the open bucket; send the bucket if it is full."""
        raise NotImplementedError("write Buckets.ready")

    def finish(self):
        """Send what is left, wait for everything, and bring the sums back into the gradients."""
        raise NotImplementedError("write Buckets.finish")
