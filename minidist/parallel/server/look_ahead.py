"""Weight prediction: a stale server answers with predicted parameters.

    server     w' ──▶ w ──▶ · ──▶ · ──▶ w*         assumes that each later update is w - w' again
                      ╰┄┄┄ predict ┄┄┄▶ ŵ
    worker            pull ŵ, compute ▶ push       so its gradient is about that of w*

Momentum and staleness both apply old gradients, and together they limit the learning rate η. On a
parabola of curvature λ, momentum 0.9 is stable for η up to 3.8/λ; with one update of delay only up
to 0.1/λ, 38 times less (the roots of (z - 1)(z - 0.9) + λη must lie in the unit circle). But with
momentum the next updates are similar to the last one, so they can be predicted. With W workers,
about W - 1 updates come between a pull and its push, so the server answers with

    ŵ = w + (W - 1)(w - w')        w': the parameters before the last update

Then a worker's gradient is computed at about the parameters to which it is applied. With one worker
ŵ = w.

Messages are those of the stale server. A server also keeps its range of w': n/S bytes. Kosson et
al., "Pipelined backpropagation at scale", arXiv 2003.11666 (linear weight prediction); Hakimi et
al., "Taming momentum in a distributed asynchronous environment", arXiv 1907.11612 (DANA, which
keeps a momentum for each worker).
"""

from __future__ import annotations

from typing import Any

from minidist.comm.machine import Machine
from minidist.data.batches import Batch
from minidist.engine.array import Array, module_of
from minidist.parallel.method import StepCost
from minidist.parallel.server.stale_parameter_server import StaleParameterServer


class LookAhead(StaleParameterServer):
    """A ``StaleParameterServer``, with the same arguments, whose workers pull predictions."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.before: Array | None = None  # on a server: its parameters before the last update
        if self.serves and self.comm.size > 1:
            self.before = module_of(self.data).empty_like(self.data)

    def update_keys(self) -> None:
        if self.before is not None:
            self.before[...] = self.data
        super().update_keys()

    def values_for(self, worker: int) -> Array:
        """The prediction ŵ. An answer always follows an update, so ``before`` is set."""
        return self.data + (len(self.workers) - 1) * (self.data - self.before)

    def arrays(self) -> dict[str, list[Array]]:
        found = super().arrays()
        if self.before is not None:
            found["parameters"].append(self.before)
        return found

    def cost(self, batch: Batch, machine: Machine) -> StepCost:
        """As the stale server, and memory for the parameters before the last update."""
        cost = super().cost(batch, machine)
        if self.comm.size > 1:
            for server, keys in zip(self.servers, self.keys, strict=True):
                before = (keys.stop - keys.start) * self.itemsize
                cost.peak_bytes["parameters"][server] += before
        return cost
