"""Buffers, such as batch norm's running averages: one value for all ranks, and what they cost.

Each rank updates its buffers from the samples that it sees, so they differ between ranks. To use
the model, or to save it, there must be one value. It is the *mean* over the ranks that saw samples:
each running average is linear in what it averages, so the mean of the ranks' is what one rank would
have that saw all their statistics. It has the same bits on every rank; and buffers that are equal
on all ranks, as those of synchronised batch norm, keep theirs. ``evaluate`` computes with it too.
Training goes on with each rank's own; after ``load`` all begin with the mean.

A layer whose result for one sample depends on the others computes another function when a batch is
cut into parts. ``why_inexact`` says so.
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
    """The mean over all ranks of ``comm``, each of which must call it: the same on every rank."""
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
    """Buffers like ``found`` from the flat buffers of several ranks: their mean."""
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
    """These values in the model's buffers, and then its own again."""
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
    """Why a method differs from serial training on this model; "" if it does not.

    A batch is cut over ``copies`` ranks, and each of these parts into ``microbatches``.
    """
    for path, layer in model.named_modules().items():
        if not isinstance(layer, BatchNorm):
            continue
        comm = getattr(layer, "comm", None)  # of synchronised batch norm
        parts = microbatches * (1 if comm is not None and comm.size == copies else copies)
        if parts > 1:
            instead = "SyncBatchNorm or LayerNorm" if microbatches == 1 else "LayerNorm"
            return (
                f"{type(layer).__name__} {path!r} normalises each of {parts} parts of a batch by "
                f"itself, where serial training normalises the batch: take {instead} to be equal"
            )
    return ""
