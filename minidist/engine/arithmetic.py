"""Counters of the arithmetic done, and of the kernels, from which a simulated clock is charged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

Prices = tuple[float, float, float, float]  # seconds a launch, a byte, a FLOP, a sequence


class Work:
    """Counters of the arithmetic done so far, from which the simulator charges a rank's clock.

    ``flops``: floating-point operations. As usual in the field (PaLM, appendix B, arXiv 2204.02311)
    only matrix products and convolutions count: 2 for each multiply-add. ``summary`` and the cost
    formulas predict them.

    Arrays without numbers also count kernels. A kernel takes the longer of its FLOPs and its bytes
    (the roofline: Williams, Waterman, Patterson, CACM 52(4), 2009), and a launch before it:

        launch + max(FLOPs / (FLOPs a second), bytes / (bytes a second))

    ``beyond`` are seconds beyond those of the FLOPs: launches, and what waits for memory.
    ``kernels`` and ``moved``: kernels launched, and bytes that they read and wrote.

    In inference each sequence of a step takes time on the host, where nothing is a kernel: its
    place in the cache is looked up, a token drawn and noted. ``sequences`` adds it.
    """

    __slots__ = (
        *("beyond", "flops", "kernels", "launch", "listed", "moved", "per_byte", "per_flop"),
        "per_sequence",
    )

    def __init__(self) -> None:
        self.flops = self.kernels = self.moved = 0
        self.beyond = 0.0
        self.launch = self.per_byte = self.per_flop = 0.0  # seconds: see ``Machine``
        self.per_sequence = 0.0
        self.listed: list[tuple[int, int]] | None = None

    def kernel(self, nbytes: int, flops: int = 0) -> None:
        """A kernel ran that moved ``nbytes``, and whose ``flops`` the op has counted."""
        self.kernels += 1
        self.moved += nbytes
        if self.listed is not None:
            self.listed.append((nbytes, flops))
        waits = nbytes * self.per_byte - flops * self.per_flop
        self.beyond += self.launch + waits if waits > 0 else self.launch

    def sequences(self, count: int) -> None:
        """A step of inference began, with so many sequences."""
        self.beyond += count * self.per_sequence

    def prices(self) -> Prices:
        """Seconds a launch, a byte, a FLOP and a sequence, for ``set_prices``."""
        return self.launch, self.per_byte, self.per_flop, self.per_sequence

    def set_prices(self, prices: Prices) -> None:
        """From now on kernels and sequences cost this: see ``Machine.kernel_prices``."""
        self.launch, self.per_byte, self.per_flop, self.per_sequence = prices

    @contextmanager
    def listing(self) -> Iterator[list[tuple[int, int]]]:
        """Inside, each kernel's bytes and FLOPs are added to the list that this gives."""
        outer, self.listed = self.listed, []
        try:
            yield self.listed
        finally:
            self.listed = outer

    def counts(self) -> tuple[int, int, int, float]:
        """All counters, for ``reset``."""
        return self.flops, self.kernels, self.moved, self.beyond

    def reset(self, counts: tuple[int, int, int, float]) -> None:
        """Set all counters as they were."""
        self.flops, self.kernels, self.moved, self.beyond = counts


work = Work()
