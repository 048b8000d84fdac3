"""Exercise: ZeRO stage 2, a shard of the gradients too.

ZeRO-1 cuts the optimizer's state. ZeRO-2 keeps only a shard of the *gradients* as well. A rank
works through several microbatches before it steps; each gives a gradient as long as the parameters.
Whoever adds them up first, and sends the sum, holds a whole gradient all that time. ZeRO-2 sends
each at once:

    microbatch 1    [ g ........ ] ── reduce-scatter ──▶  [ g0 ]      n/p numbers stay
    microbatch 2    [ g ........ ] ── reduce-scatter ──▶  [ g0 ] added to the first
    step            Adam on the own part of the parameters, with this sum
                    all-gather of the parameters

With n parameters on p ranks and k microbatches:

    held             n/p numbers of gradients, 2n/p of state, all the time
    sent             n(p - 1)/p numbers for each microbatch, and once more for the parameters

To do: write the class ``Zero2``. You have, as arguments, ``reduce_scatter(comm, array)``, which
returns the sum over all ranks of this rank's part (it uses ``array`` up; parts are those of
``numpy.array_split``), ``all_gather(comm, array)``, to which each rank brings its part in place,
and ``adam(w, g, m, v, t)``, which steps w, m and v in place (t counts from 1). The gradients of all
microbatches on all ranks are to be added up. After a step, the next one begins from zero. Between
two calls keep no array as long as w, besides w itself.

    minidist check zero2 mine.py
"""


class Zero2:
    """Adam on ``w`` (1-D, in place), with gradients and state cut over the ranks."""

    def __init__(self, comm, reduce_scatter, all_gather, adam, w):
        raise NotImplementedError("write Zero2")

    def add(self, grad):
        """The gradient of one microbatch: keep the own part of its sum over the ranks."""
        raise NotImplementedError("write Zero2.add")

    def step(self):
        """One step with all that was added: ``w`` is then new on every rank."""
        raise NotImplementedError("write Zero2.step")
