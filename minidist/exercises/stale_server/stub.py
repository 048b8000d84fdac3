"""Exercise: a server that lets workers run ahead, but not too far.

Workers train at different speeds. A *synchronous* server makes all of them wait for the slowest in
every step. An *asynchronous* one lets nobody wait, and a fast worker may compute on parameters that
are far behind. *Stale synchronous parallel* stands between: a worker that has finished c steps may
begin its next one only if the slowest worker has finished at least c - s steps.

    s = 0     everybody waits for everybody: synchronous
    s = 2     the fastest is at most two finished steps ahead when it begins the next
    s = inf   nobody waits

    worker 0   ███ ███ ███ ░░░░ ███     ░ waits: 3 steps finished, the slowest none, and s = 2
    worker 1   ███████████████ ███

To do: write the class ``Clock``, the server's memory of who is where. It sends nothing: the server
asks it.

    clock = Clock(workers=2, staleness=2)
    clock.may_begin(worker)     True or False: may this worker begin its next step now?
    clock.finished(worker)      this worker has finished a step; returns the list of all workers, in
                                ascending order, that had to wait before this and may begin now

A worker *has to wait* once ``may_begin`` has answered False for it, until it is in a list that
``finished`` returns.

Ho et al., "More effective distributed ML via a stale synchronous parallel parameter server", NIPS
2013.

    minidist check stale_server mine.py
"""


class Clock:
    """Who has finished how many steps, and who may go on."""

    def __init__(self, workers, staleness):
        raise NotImplementedError("write Clock")

    def may_begin(self, worker):
        """Whether this worker may begin its next step now."""
        raise NotImplementedError("write Clock.may_begin")

    def finished(self, worker):
        """Count a finished step; the workers that waited and may begin now, in order."""
        raise NotImplementedError("write Clock.finished")
