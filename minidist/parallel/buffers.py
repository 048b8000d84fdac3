"""Buffers, such as batch norm's running averages: one value for all ranks.

Each rank updates its buffers from its own samples, so they differ between ranks. To evaluate or to
save the model, one value is needed: the *mean* over the ranks that train. A running average is
linear in the statistics that it averages. So the mean of the ranks' running averages is the running
average of the ranks' mean statistics. It has the same bits on every rank. Buffers that are equal on
all ranks, such as those of synchronised batch norm, keep their bits. Training continues with each
rank's own buffers; after ``load`` all ranks start with the mean.

Batch norm's output for one sample depends on the other samples. When a batch is cut into parts, it
therefore computes a different function. ``why_inexact`` gives this reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from minidist.collectives import central, ring
from minidist.comm.comm import Comm
from minidist.engine import array as arrays
from minidist.nn.module import Module
from minidist.nn.normalization import BatchNorm
from minidist.parallel.state import State, own_buffers


def mean_buffers(comm: Comm, model: Module) -> State:
    """The mean of the buffers over ``comm``: the same on every rank. Every rank must call it."""
    found = own_buffers(model)
    if comm.size > 1 and found:
        own = np.concatenate([values.reshape(-1) for values in found.values()])
        first = own.copy()
        central.broadcast(comm, first, root=0)
        rest = own - first  # 0 where all are equal, so that their bits stay
        ring.all_reduce(comm, rest)
        cut_into(found, first + rest / comm.size)
    return found


def mean_of(found: State, every: Sequence[np.ndarray]) -> State:
    """Fill ``found`` with the mean of ``every``, the flat buffers of several ranks."""
    first = every[0]
    cut_into(found, first + sum(other - first for other in every) / len(every))
    return found


def cut_into(found: State, flat: np.ndarray) -> None:
    """Fill these arrays, one after the other, from ``flat``."""
    start = 0
    for values in found.values():
        values[...] = flat[start : start + values.size].reshape(values.shape)
        start += values.size


@contextmanager
def with_buffers(model: Module, values: State) -> Iterator[None]:
    """Put ``values`` in the model's buffers inside the block; then restore its own."""
    named = model.named_buffers()
    own = {name: buffer.data.copy() for name, buffer in named.items()}
    for name, buffer in named.items():
        buffer.data[...] = arrays.module_of(buffer.data).asarray(values[name])
    try:
        yield
    finally:
        for name, buffer in named.items():
            buffer.data[...] = own[name]


def why_inexact(model: Module, copies: int, microbatches: int) -> str:
    """Why a method's result differs from serial training on this model; "" if it does not.

    A batch is cut into ``copies`` shards, and each shard into ``microbatches``.
    """
    for path, layer in model.named_modules().items():
        if not isinstance(layer, BatchNorm):
            continue
        comm = getattr(layer, "comm", None)  # of synchronised batch norm
        parts = microbatches * (1 if comm is not None and comm.size == copies else copies)
        if parts > 1:
            instead = "SyncBatchNorm or LayerNorm" if microbatches == 1 else "LayerNorm"
            return (
                f"{type(layer).__name__} {path!r} normalises each of {parts} parts of a batch "
                f"separately; serial training normalises the whole batch: use {instead} for equal "
                "results"
            )
    return ""
