"""Runs under mpiexec: a real straggler, the bound it sets, and a record that replays exactly."""

import time

import numpy as np

from minidist import launch
from minidist.engine.array import defaults
from tests.parallel.checks import Setting
from tests.parallel.server.test_stale_parameter_server import Logged, free_run, replay

BOUND = 2


class Straggler(Logged):
    """The last rank takes much longer than the others."""

    def forward_backward(self, batch):
        time.sleep(0.03 if self.comm.rank == self.comm.size - 1 else 0.001)
        return super().forward_backward(batch)


LAYOUTS = ({}, {"servers": 2}, {"colocated": True})


def main(comm):
    setting, found = Setting(steps=10), []
    with defaults(dtype="float64"):
        for layout in LAYOUTS:
            method, losses = free_run(comm, Straggler, setting, staleness=BOUND, **layout)
            parameters = method.parameters()
            found.append((losses, parameters, method.updates, method.keys, method.workers))
    return found


for layout, results in zip(LAYOUTS, zip(*launch(main), strict=True), strict=True):
    losses, parameters, _, keys, workers = results[0]
    assert all(result[0] == losses for result in results)
    records = [updates for *_, updates, _, _ in results if updates]
    assert len(records) == len(keys)
    with defaults(dtype="float64"):
        expected = replay(records, keys, workers, Setting(steps=10))
    for name in expected:
        np.testing.assert_allclose(parameters[name], expected[name], rtol=1e-12, atol=1e-14)
    for updates in records:
        lead = max(update.lead for update in updates)
        assert lead == BOUND, f"{layout}: the fastest was {lead} clocks ahead, the bound is {BOUND}"
        staleness = {update.staleness for update in updates}
        assert len(staleness) > 1, f"{layout}: staleness was always {staleness}"
