"""Exercise: the gradient of a mean, from uneven shards.

A linear model predicts x @ w. The loss is the mean over all samples of half the squared error:

    loss = 1/N * sum over samples of (x[i] @ w - y[i])**2 / 2
    grad = 1/N * sum over samples of (x[i] @ w - y[i]) * x[i]

The N samples are spread over p ranks, not evenly: with 7 samples on 3 ranks, the ranks have 3, 2
and 2. Some rank may have none. Each rank can compute the gradient of *its* samples; an all-reduce
adds up numbers over all ranks. Whoever averages the ranks' averages weighs a sample of a small
shard more than one of a large shard: that is another loss than the one that was asked for.

To do: write ``gradient(comm, all_reduce, w, x, y)``, which returns the gradient for *all* samples,
on every rank. ``x`` (samples of this rank, features) and ``y`` are this rank's shard. A rank does
not know N; what it needs from others it gets by ``all_reduce(comm, array)``, which replaces a
float64 array, in place, by the sum over all ranks. One call is enough, of the gradient's length and
one number more. Do not change w, x and y.

    minidist check uneven_shards mine.py
"""


def gradient(comm, all_reduce, w, x, y):
    """The gradient of the mean loss of all ranks' samples, (features,)."""
    raise NotImplementedError("write gradient")
