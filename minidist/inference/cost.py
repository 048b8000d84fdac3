"""The bytes that answering requests sends between ranks: they do not depend on the batching.

Each position of a request goes through the model once, and each new token needs the logits of one
row, in any batch. So requests with prompts of l tokens and c new tokens have

    n = Σ (l + c - 1)  rows        r = Σ c  tokens

A rank sends the ``Traffic`` of its layers for n rows, its part of the logits for r rows, and n rows
to the next stage; the last stage sends 8r bytes to each other stage. For the replicas, rank 0 sends
each other rank 16 bytes a round, and 8 bytes for each number that encodes a request. The first rank
of each other replica sends 24 bytes a round for each of ``at_once`` sequences.

The formula is exact if the ranks of the tensor axis divide the width (otherwise the chunks of a
ring are uneven), and no request is cancelled or stopped early.
"""

from __future__ import annotations

from collections.abc import Sequence

from minidist.comm.machine import Machine
from minidist.inference.mesh_engine import MeshEngine
from minidist.inference.replicas import encode
from minidist.inference.requests import Request
from minidist.models.gpt import Head
from minidist.parallel.tensor.axis import Sum
from minidist.parallel.tensor.ends import CutHead
from minidist.parallel.tensor.layers import traffic_of


def bytes_of(engine: MeshEngine, requests: Sequence[Request]) -> int:
    """The bytes that this rank sends to the ranks of its replica, to answer these requests."""
    n = sum(request.positions for request in requests)
    r = sum(request.count for request in requests)
    itemsize, tensor, width = engine.model.flat.data.itemsize, engine.mesh["tp"], engine.width
    sums: list[Sum] = []
    for block in engine.model.blocks.values():
        if isinstance(block, CutHead):
            lengths = [block.cut.length(rank) for rank in range(tensor.size)]
            # A ring all-gather: this rank sends every part except that of the next rank.
            sent = sum(lengths) - lengths[(tensor.rank + 1) % tensor.size]
            logits = sent * r * itemsize
        elif not isinstance(block, Head):
            shape = (1, n) if hasattr(block, "look_up") else (1, n, width)
            sums += traffic_of(block, shape, itemsize).forward
    total = sum(one.cost(tensor.rank, Machine()).nbytes for one in sums)
    if any(isinstance(block, CutHead) for block in engine.model.blocks.values()):
        total += logits
    if engine.stage < engine.stages - 1:
        return total + n * width * itemsize
    return total + 8 * r * (engine.stages - 1)


def request_bytes(requests: Sequence[Request]) -> int:
    """The bytes that send these requests to a rank."""
    return 8 * sum(len(encode(0, request)) for request in requests)
