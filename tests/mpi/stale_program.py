"""Runs under mpiexec: a real straggler, the bound it sets, and a record that replays exactly."""

import time

import numpy as np

from minidist import launch
from minidist.array import defaults
from tests.parallel.checks import Setting
from tests.parallel.test_stale_parameter_server import Logged, free_run, replay

BOUND = 2


class Straggler(Logged):
    """The last rank takes much longer than the others."""

    def forward_backward(self, batch):
        time.sleep(0.03 if self.comm.rank == self.comm.size - 1 else 0.001)
        return super().forward_backward(batch)


def main(comm):
    setting = Setting(steps=10)
    with defaults(dtype="float64"):
        method, losses = free_run(comm, Straggler, setting, staleness=BOUND)
        parameters = method.parameters()
        if comm.rank == 0:
            expected = replay(method.updates, setting, method.workers)
            for name in expected:
                np.testing.assert_allclose(parameters[name], expected[name], rtol=1e-12, atol=1e-14)
    leads = {update.lead for update in method.updates}
    return losses, leads, {update.staleness for update in method.updates}


results = launch(main)
assert all(losses == results[0][0] for losses, *_ in results)
_, leads, staleness = results[0]
assert max(leads) == BOUND, f"the fastest was {max(leads)} clocks ahead, the bound is {BOUND}"
assert len(staleness) > 1, f"staleness was always {staleness}"
