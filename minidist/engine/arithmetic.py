"""Counters of arithmetic and kernels, from which the simulator computes a rank's time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Work:
    """Counters of the arithmetic done so far, from which the simulator computes a rank's time.

    ``flops``: floating-point operations. As usual in the field (PaLM, appendix B, arXiv 2204.02311)
    only matrix products and convolutions count: 2 for each multiply-add. ``summary`` and the cost
    formulas predict them.

    Arrays without numbers also count kernels. A kernel takes the time of its launch, and then that
    of its FLOPs or of its bytes, whichever is longer (the roofline: Williams, Waterman, Patterson,
    CACM 52(4), 2009):

        launch + max(FLOPs / (FLOPs a second), bytes / (bytes a second))

    ``beyond``: seconds in addition to those of the FLOPs, for launches and for waiting for memory.
    ``kernels``: kernels launched. ``moved``: bytes that they read and wrote. ``launch``,
    ``per_byte`` and ``per_flop`` are prices in seconds. ``listed``: see ``listing``.
    """

    __slots__ = (
        *("beyond", "flops", "kernels", "launch", "listed", "moved", "per_byte", "per_flop"),
    )

    def __init__(self) -> None:
        self.flops = self.kernels = self.moved = 0
        self.beyond = 0.0
        self.launch = self.per_byte = self.per_flop = 0.0  # seconds: see ``Machine``
        self.listed: list[tuple[int, int]] | None = None

    def kernel(self, nbytes: int, flops: int = 0) -> None:
        """Count a kernel that moved ``nbytes``; its ``flops`` have been counted by the op."""
        self.kernels += 1
        self.moved += nbytes
        if self.listed is not None:
            self.listed.append((nbytes, flops))
        waits = nbytes * self.per_byte - flops * self.per_flop
        self.beyond += self.launch + waits if waits > 0 else self.launch

    def prices(self) -> tuple[float, float, float]:
        """Seconds for a launch, a byte and a FLOP; ``set_prices`` takes them."""
        return self.launch, self.per_byte, self.per_flop

    def set_prices(self, prices: tuple[float, float, float]) -> None:
        """Set the prices of kernels from now on: see ``Machine.kernel_prices``."""
        self.launch, self.per_byte, self.per_flop = prices

    @contextmanager
    def listing(self) -> Iterator[list[tuple[int, int]]]:
        """Inside, (bytes, FLOPs) of each kernel is appended to the list that this yields."""
        outer, self.listed = self.listed, []
        try:
            yield self.listed
        finally:
            self.listed = outer

    def counts(self) -> tuple[int, int, int, float]:
        """All counters; ``reset`` takes them."""
        return self.flops, self.kernels, self.moved, self.beyond

    def reset(self, counts: tuple[int, int, int, float]) -> None:
        """Set all counters to what ``counts`` returned."""
        self.flops, self.kernels, self.moved, self.beyond = counts


work = Work()
