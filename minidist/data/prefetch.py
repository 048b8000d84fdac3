"""Prefetch: read a rank's part of the next batch during the current training step.

    disk      ─read 0─ ─read 1─  ─read 2─  ─read 3─
    compute            ▇step 0▇▇ ▇step 1▇▇ ▇step 2▇▇      waits only for read 0

    with Prefetch(batches, comm.rank, comm.size) as ahead:
        for step in range(steps):
            method.step(ahead[step])
    ahead.waited                 seconds that this rank waited for data

A dataset larger than memory is read by index, for example from a memory-mapped file, and a method
reads only its shard of a batch. Without prefetch the step waits while it reads. Here a thread reads
the same samples in advance; the batches are those of ``batches``. If a step computes for C seconds
and reads its shard in R seconds, it takes C + R without prefetch, and max(C, R) with it.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Self

import numpy as np

from minidist.data.batches import Batches
from minidist.data.dataset import Batch, Samples


class Prefetch:
    """``prefetch[step]`` is ``batches[step]``, with this rank's shard in memory.

    The shard is part ``rank`` of ``size``, as in data parallelism. One thread reads ``ahead``
    batches in advance, in order of steps. ``waited`` is the seconds spent waiting for the thread,
    ``read`` those of its reading. Raises ValueError for a rank outside [0, size) or ``ahead`` below
    1; ``prefetch[step]`` raises the errors of reading.
    """

    def __init__(self, batches: Batches, rank: int, size: int, ahead: int = 1) -> None:
        if not 0 <= rank < size:
            raise ValueError(f"Prefetch: rank {rank} is not in [0, {size})")
        if ahead < 1:
            raise ValueError(f"Prefetch: ahead={ahead}: read at least 1 batch ahead")
        self.batches, self.rank, self.size, self.ahead = batches, rank, size, ahead
        self.waited = self.read = 0.0
        self._reads: dict[int, Future[Batch]] = {}
        self._thread = ThreadPoolExecutor(1, "prefetch")

    def __len__(self) -> int:
        """Steps in an epoch."""
        return len(self.batches)

    def __getitem__(self, step: int) -> Batch:
        for old in [number for number in self._reads if not step <= number <= step + self.ahead]:
            self._reads.pop(old).cancel()
        for number in range(step, step + self.ahead + 1):
            if number not in self._reads:
                self._reads[number] = self._thread.submit(self._load, self.batches[number])
        start = time.perf_counter()
        try:
            return self._reads.pop(step).result()
        finally:
            self.waited += time.perf_counter() - start

    def _load(self, batch: Batch) -> Batch:
        """The same batch, with a dataset that has this rank's samples in memory."""
        start = time.perf_counter()
        indices, of = batch.shard(self.rank, self.size).indices, batch.dataset
        loaded = replace(
            of, inputs=InMemory(of.inputs, indices), targets=InMemory(of.targets, indices)
        )
        self.read += time.perf_counter() - start
        return replace(batch, dataset=loaded)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading, and end the thread."""
        self._thread.shutdown(cancel_futures=True)
        self._reads.clear()


class InMemory:
    """Samples that can be indexed like ``of``: some are in memory, others are read when needed."""

    def __init__(self, of: Samples, indices: np.ndarray) -> None:
        self.of, self.shape = of, of.shape
        self.order = np.argsort(indices, kind="stable")
        self.sorted = np.asarray(indices)[self.order]
        self.rows = np.asarray(of[indices])
        self.dtype = getattr(of, "dtype", self.rows.dtype)

    def __len__(self) -> int:
        return len(self.of)

    def __getitem__(self, indices: Any) -> np.ndarray:
        wanted = np.asarray(indices)
        places = np.searchsorted(self.sorted, wanted)
        found = places < len(self.sorted)
        if not (found.all() and np.array_equal(self.sorted[places], wanted)):
            return np.asarray(self.of[indices])
        return self.rows[self.order[places]]
