"""The cost of a layer, known before anything is computed: the basis of every prediction.

Each layer's ``cost(shape)`` returns a ``LayerCost``; ``in_a_row`` adds up consecutive layers.
Summaries, the cutting of pipelines and the formulas of the parallel methods use these costs. Tests
check that they equal the counts of a real step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minidist.nn.parameter import Shape


@dataclass(frozen=True)
class LayerCost:
    """The cost of one layer on an input of a given shape.

    ``shape``: the output's. ``flops``: of the forward, matrix products only; ``weight_flops`` and
    ``input_flops``: of the gradients of the weights and of the input. ``saves_input``,
    ``saves_output``: whether the backward needs the input, the output; ``saved_bytes``: the bytes
    of everything else that it saves. ``view``: the output is the input's memory in another shape.
    If the weight gradient is computed later, it keeps more until then: ``defers_input`` says
    whether it keeps the input, and ``deferred_bytes`` counts everything else.
    """

    shape: Shape
    flops: int = 0
    input_flops: int = 0
    weight_flops: int = 0
    saves_input: bool = False
    saves_output: bool = False
    saved_bytes: int = 0
    view: bool = False
    defers_input: bool = False
    deferred_bytes: int = 0


def in_a_row(costs: Sequence[LayerCost], shape: Shape, itemsize: int) -> LayerCost:
    """The cost of consecutive layers, on an input of ``shape``, as one layer.

    The array between two layers is saved once, if either of the two needs it.
    """
    saved = 0
    boundary, needed = shape, False
    saves_input = defers_input = False
    deferred = 0
    first = True
    for cost in costs:
        needed = needed or cost.saves_input
        saved += cost.saved_bytes
        deferred += cost.deferred_bytes
        if cost.defers_input:
            defers_input = defers_input or first
            deferred += 0 if first else int(np.prod(boundary)) * itemsize
        if cost.view:
            continue  # the output is the same memory as the input, so the boundary stays the same
        if first:
            saves_input = needed
        elif needed:
            saved += int(np.prod(boundary)) * itemsize
        boundary, needed, first = cost.shape, cost.saves_output, False
    return LayerCost(
        shape=costs[-1].shape if costs else shape,
        flops=sum(cost.flops for cost in costs),
        input_flops=sum(cost.input_flops for cost in costs),
        weight_flops=sum(cost.weight_flops for cost in costs),
        saves_input=saves_input or (first and needed),
        saves_output=needed and not first,
        saved_bytes=saved,
        view=first,
        defers_input=defers_input,
        deferred_bytes=deferred,
    )
