"""The machine model: what a message, a reduction and a FLOP cost, in seconds.

A message of n bytes takes α + n·β: ``latency`` plus bytes over ``bandwidth``. Combining two
arrays of n bytes takes n·γ (Hockney 1994; Thakur, Rabenseifner, Gropp, IJHPCA 19(1) 2005). The
local world runs its virtual clock on this model and every cost formula is evaluated with it, so
the two can be held equal.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Machine:
    """α, β, γ and the speed of one rank.

    ``latency``: seconds a message (α). ``bandwidth``: bytes a second on a link (1/β).
    ``reduce_bandwidth``: bytes a second of combining two arrays (1/γ). ``flops``: floating-point
    operations a second. ``slowdown``: for each straggling rank, how many times longer it takes
    to compute, for example ``{3: 4.0}``.
    """

    name: str = "laptop"
    latency: float = 2e-6
    bandwidth: float = 4e9
    reduce_bandwidth: float = 8e9
    flops: float = 3e10
    slowdown: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("bandwidth", "reduce_bandwidth", "flops"):
            if getattr(self, name) <= 0:
                raise ValueError(f"Machine: {name} must be positive, not {getattr(self, name)}")
        if self.latency < 0:
            raise ValueError(f"Machine: latency must not be negative: {self.latency}")

    def message(self, nbytes: int) -> float:
        """Seconds that a message of ``nbytes`` keeps both of its ports busy: α + n·β."""
        return self.latency + nbytes / self.bandwidth

    def reduce(self, nbytes: int) -> float:
        """Seconds to combine ``nbytes`` into as many: n·γ."""
        return nbytes / self.reduce_bandwidth

    def compute(self, flops: int, rank: int = 0) -> float:
        """Seconds that ``rank`` needs for ``flops`` operations."""
        return flops / self.flops * self.slowdown.get(rank, 1.0)
