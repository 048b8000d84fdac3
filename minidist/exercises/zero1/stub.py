"""Exercise: ZeRO stage 1, a shard of the optimizer's state on each rank.

With Adam each rank of data parallel training keeps two more arrays as long as the parameters: m and
v. All ranks keep the same numbers. ZeRO-1 gives each rank a part of the parameters to step, and
only the m and v of this part:

    gradients    rank 0 [ g ........ ]      reduce-scatter: each rank gets the *sum* over all
                 rank 1 [ g ........ ]      ranks of its part of the gradient
    step         rank 0 [ w0 |       ]      each rank steps its part, with its own m and v
                 rank 1 [    | w1    ]
    parameters   rank 0 [ w0 | w1    ]      all-gather: everybody has all new parameters
                 rank 1 [ w0 | w1    ]

With n parameters on p ranks:

    state held       2n/p numbers instead of 2n
    sent             n(p - 1)/p numbers twice: no more than an all-reduce of the gradients

Parts are those of ``numpy.array_split(array, p)``: views, so writing into one writes into the
array.

To do: write the class ``Zero1``. You have, as arguments, ``reduce_scatter(comm, array)``, which
returns the sum over all ranks of this rank's part (it uses ``array`` up), and ``all_gather(comm,
array)``, to which each rank brings its part in place; and ``adam(w, g, m, v, t)``, which steps w, m
and v in place (t counts from 1). The gradients of the ranks are to be added up; nothing is divided.

    minidist check zero1 mine.py
"""


class Zero1:
    """Adam on ``w`` (1-D, in place), with the state cut over the ranks."""

    def __init__(self, comm, reduce_scatter, all_gather, adam, w):
        raise NotImplementedError("write Zero1")

    def step(self, grad):
        """Add up all ranks' ``grad``, and take one step: ``w`` is then new on every rank."""
        raise NotImplementedError("write Zero1.step")
