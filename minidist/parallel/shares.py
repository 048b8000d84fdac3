"""Shares: which part of a method's state each rank writes into a checkpoint.

``Method.state()`` gathers everything on every rank. For a checkpoint no rank needs all of it:

    method                      what a rank writes                              sends
    serial, data parallel,      1/p of the arrays, which every rank has         8 bytes
    compression
    ZeRO 1, 2, 3                its shard of the parameters and of the          8 bytes
                                optimizer's state
    pipelines                   its stage; replicas of a stage divide it        8 bytes
    synchronous and stale       a server its key range; a worker nothing        8 bytes
    parameter servers
    tensor parallelism          its slices; rank 0 the parameters that are      8 bytes
                                not sliced
    all others                  1/p of the whole state, which is gathered       state()

An all-reduce of the number of steps sends the 8 bytes; buffers, such as batch norm's mean, are sent
too. Each rank writes the arrays that only it has (errors of compression). All shares together are
``state()``, with every element once; a test checks this for every method.

A share is a span of a box of a named array. The box is [start, stop) along each axis: a rank of a
mesh holds such a slice of a matrix. The span is [start, stop) in the flattened box: a shard, which
may begin inside a row.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from minidist.collectives import all_reduce, ring
from minidist.comm.comm import Comm
from minidist.engine import array as arrays
from minidist.engine.array import Array
from minidist.parallel.state import OptimizerShard, State, key

Box = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Share:
    """Part of a named array of ``shape``. ``data``: the part's values, 1-D."""

    name: str
    shape: tuple[int, ...]
    box: Box
    span: tuple[int, int]
    data: Array


def whole_box(shape: Sequence[int]) -> Box:
    """The box of a whole array."""
    return tuple((0, length) for length in shape)


def flat_share(name: str, shape: Sequence[int], low: int, data: Array) -> Share:
    """``data`` as the elements from ``low`` on of an array of ``shape``, flattened."""
    return Share(name, tuple(shape), whole_box(shape), (low, low + data.size), data.reshape(-1))


def box_share(name: str, shape: Sequence[int], box: Box, values: Array) -> Share:
    """``values`` as a box of an array of ``shape``: a slice along one or several axes."""
    return Share(name, tuple(shape), box, (0, values.size), values.reshape(-1))


def whole_share(name: str, values: np.ndarray) -> Share:
    """All of an array."""
    return flat_share(name, values.shape, 0, values.reshape(-1))


def equal_shares(state: Mapping[str, np.ndarray], comm: Comm) -> list[Share]:
    """This rank's 1/p of a state that every rank has, and the arrays that only this rank has."""
    own = key(comm.rank, comm.size)
    mine = [whole_share(n, values) for n, values in state.items() if n.startswith(own)]
    common = {name: values for name, values in state.items() if not name.startswith("rank ")}
    part = ring.chunks(sum(values.size for values in common.values()), comm.size)[comm.rank]
    start = 0
    for name, values in common.items():
        low, high = max(start, part.start), min(start + values.size, part.stop)
        if low < high:
            flat = values.reshape(-1)[low - start : high - start]
            mine.append(flat_share(name, values.shape, low - start, flat))
        start += values.size
    return mine


def shard_shares(
    replica: int,
    replicas: int,
    shards: Sequence[OptimizerShard],
    without: Collection[str] = (),
) -> list[Share]:
    """One replica's part of the parameters and of the optimizer's state, as views of its arrays.

    If every replica has everything, each takes 1/``replicas``. ``without``: names of parameters
    that another rank writes.
    """
    found = []
    for shard in shards:
        total = sum(part.stop - part.start for part in shard.slices.values())
        if shard.shards is None:
            part = held = ring.chunks(total, replicas)[replica]
        else:
            part = shard.shards[replica]
            held = slice(0, part.stop - part.start)
        kinds = {"parameters": shard.data} | {
            f"optimizer/{slot}": array for slot, array in shard.part.state.items()
        }
        for name, where in shard.slices.items():
            low, high = max(where.start, part.start), min(where.stop, part.stop)
            if low >= high or name in without:
                continue
            for kind, array in kinds.items():
                values = array[held][low - part.start : high - part.start]
                shape = shard.parameters[name].declared
                found.append(flat_share(f"{kind}/{name}", shape, low - where.start, values))
    return found


def all_shares(
    comm: Comm,
    shares: list[Share],
    shards: Sequence[OptimizerShard],
    steps: int,
    buffers: State,
    own: Mapping[str, Array],
) -> list[Share]:
    """``shares``, and besides: steps, buffers, and the arrays that only this rank has.

    Every rank must call it: the optimizer's steps are the maximum over the ranks.
    """
    counted = np.array([max((s.optimizer.steps for s in shards), default=0)], np.int64)
    all_reduce(comm, counted, "max")
    if comm.rank == 0:
        shares = [*shares, whole_share("steps", counted.reshape(()))]
        shares.append(whole_share("method/steps", np.array(steps)))
        shares += [whole_share(f"parameters/{n}", values) for n, values in buffers.items()]
    mine = key(comm.rank, comm.size)
    kept = {name: arrays.to_host(array) for name, array in own.items()}
    return shares + [whole_share(mine + name, values) for name, values in kept.items()]


def size_of(shape: Sequence[int]) -> int:
    """The number of elements of an array of this shape, as a Python int: it cannot overflow."""
    return math.prod(shape)
