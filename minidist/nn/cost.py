"""What a layer costs, said before anything is computed: the basis of every prediction.

Each layer's ``cost(shape)`` returns a ``LayerCost``; ``in_a_row`` adds layers up. Summaries, the
cutting of pipelines and the formulas of the parallel methods use them, and tests hold them equal to
what a real step counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minidist.nn.parameter import Shape


@dataclass(frozen=True)
class LayerCost:
    """What one layer costs on an input of a given shape: the basis of every prediction.

    ``shape``: of the output. ``flops``: of the forward, matrix products alone; each needs as many
    again for the weights' gradient (``weight_flops``) and for the input's (``input_flops``).
    ``saves_input``, ``saves_output``: whether the backward needs them; ``saved_bytes``: of
    anything else it keeps. ``view``: the output is the input's memory in another shape.
    ``defers_input``, ``deferred_bytes``: what a weight gradient that is computed later keeps until
    then, beside the saved: its input, and anything else.
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
    """Layers one after the other, on an input of ``shape``, as one.

    What lies between two layers is one array, saved once if either of the two needs it.
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
            continue  # the same memory: still the same boundary
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
