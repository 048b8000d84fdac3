"""Exercise: softmax cross-entropy, forward and backward.

A classifier gives each sample a row of *logits* z, one for each class. Softmax makes probabilities
of them, and the loss of a sample is minus the logarithm of the probability of its true class t:

    p[j] = exp(z[j]) / sum over k of exp(z[k])           loss = -log p[t]

The loss of a batch is the sum over samples divided by ``count``. In distributed training a rank
sees a part of the batch, and ``count`` is the number of samples in the *whole* batch; so it is
given.

Two things to watch:

- exp(1000) is infinite. Softmax does not change if the same number is subtracted from all logits of
  a row; the largest one is a good choice. And log p[t] is a difference, without taking the
  logarithm of a p that may have become 0.
- The backward is short: d loss / d z[j] = (p[j] - 1 if j is t else p[j]) / count.

To do: write both functions. ``logits`` is (samples, classes), ``targets`` (samples,) holds
integers. Do not change them. A batch without samples has the loss 0.

    minidist check cross_entropy mine.py
"""


def loss(logits, targets, count):
    """The sum of the samples' losses, divided by ``count``: one number."""
    raise NotImplementedError("write loss")


def backward(logits, targets, count):
    """The gradient of ``loss`` for the logits, of their shape."""
    raise NotImplementedError("write backward")
