"""The size and speed of a model: bytes on disk and in memory, parameters, FLOPs, seconds.

bytes on disk     of the file that ``save`` writes
bytes in memory   of all parameters and buffers
parameters        weights that are not zero; a code counts as one weight
FLOPs             of one sample's forward, by ``Module.cost``: zeros are multiplied too
seconds           of one sample's forward, measured: median of several on a whole batch
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from minidist.compress.files import to_bytes
from minidist.compress.grouped import GroupedLinear, unpack4
from minidist.compress.int8 import Int8Layer
from minidist.engine.array import synchronize, to_host
from minidist.nn.evaluating import as_in_evaluation
from minidist.nn.module import Module


@dataclass(frozen=True)
class Sizes:
    """The sizes of one model: bytes on disk, bytes in memory, parameters, FLOPs of a sample."""

    disk: int
    memory: int
    parameters: int
    flops: int


def count_parameters(model: Module) -> int:
    """The number of weights and biases (or codes) that are not zero; scales are not counted."""
    arrays = [parameter.data for parameter in model.parameters()]
    for layer in model.named_modules().values():
        if isinstance(layer, (Int8Layer, GroupedLinear)):
            four = isinstance(layer, GroupedLinear) and layer.bits == 4
            arrays.append(unpack4(layer.codes.data) if four else layer.codes.data)
            arrays += [] if layer.bias is None else [layer.bias.data]
    return sum(int(np.count_nonzero(to_host(array))) for array in arrays)


def sizes(model: Any, shape: tuple[int, ...]) -> Sizes:
    """The sizes of an initialised model; ``shape`` is that of one sample."""
    return Sizes(
        disk=len(to_bytes(model)),
        memory=sum(array.nbytes for array in model.state().values()),
        parameters=count_parameters(model),
        flops=model.cost((1, *shape)).flops,
    )


def seconds_a_sample(models: list[Any], inputs: Any, repeats: int = 7) -> list[float]:
    """Median seconds of each model's forward, divided by the number of samples.

    The models are timed in turn, so that a change in the machine's load affects all.
    """
    times: list[list[float]] = [[] for _ in models]
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(as_in_evaluation(model))
            model(inputs)  # allocates, and fills caches
        for _ in range(repeats):
            for model, seconds in zip(models, times, strict=True):
                start = time.perf_counter()
                model(inputs)
                synchronize()
                seconds.append(time.perf_counter() - start)
    return [median(seconds) / len(inputs) for seconds in times]
