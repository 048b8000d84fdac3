"""The cost of a layer, from its declaration alone: all predictions are made from these costs.

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

    FLOPs are those of matrix products only. If a backward computes the gradients of inputs now and
    those of weights later (``defer_weight_gradients``), a layer keeps some arrays until then: these
    are "deferred".
    """

    shape: Shape  # of the output
    flops: int = 0  # of the forward
    input_flops: int = 0  # of the gradient of the input
    weight_flops: int = 0  # of the gradients of the weights
    saves_input: bool = False  # whether the backward needs the input
    saves_output: bool = False  # whether the backward needs the output
    saved_bytes: int = 0  # of everything else that the backward needs
    view: bool = False  # whether the output is the input's memory in another shape
    defers_input: bool = False  # whether a deferred weight gradient needs the input
    deferred_bytes: int = 0  # of everything else that it needs
    # The most that several layers keep during a backward that defers, in which some have run and
    # others have not; of one layer: 0.
    splitting_bytes: int = 0
    # What a layer that computes again in its backward keeps during it, instead of ``saved_bytes``.
    backward_bytes: int = 0


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
            continue  # the output is the input's memory, so the boundary is the same array
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
        splitting_bytes=walk_back(costs, shape, itemsize, ends=False)[0],
        backward_bytes=(
            walk_back(costs, shape, itemsize, ends=False, deferring=False)[0]
            if any(cost.backward_bytes for cost in costs)
            else 0
        ),
    )


def walk_back(
    costs: Sequence[LayerCost],
    shape: Shape,
    itemsize: int,
    loss_bytes: int = 0,
    ends: bool = True,
    deferring: bool = True,
) -> tuple[int, int]:
    """Bytes kept during a backward that defers weight gradients: the most, and those at the end.

    The backward of a layer frees what it saved. If it has weights, it keeps its input and the
    gradient of its output for later; if not ``deferring``, it keeps nothing. The array between two
    layers is counted once, whichever of them keeps it. ``loss_bytes`` are saved by the loss, whose
    backward is first. Without ``ends`` the first input and the last output are not counted, since
    they belong to the neighbouring layers too.
    """
    shapes = [shape, *(cost.shape for cost in costs)]
    place = [0]  # the index of the array before each layer: a view is the same array
    for index, cost in enumerate(costs):
        place.append(place[-1] if cost.view else index + 1)
    sizes = {place[i]: int(np.prod(shapes[place[i]])) * itemsize for i in range(len(place))}
    if not ends:
        sizes[place[0]] = sizes[place[-1]] = 0
    users: dict[int, int] = {}

    def use(boundary: int, count: int) -> None:
        users[boundary] = users.get(boundary, 0) + count

    own = 0
    for index, cost in enumerate(costs):
        use(place[index], cost.saves_input)
        use(place[index + 1], cost.saves_output)
        own += cost.saved_bytes
    highest = now = own + sum(sizes[b] for b, count in users.items() if count)
    highest += loss_bytes
    for index in reversed(range(len(costs))):
        cost = costs[index]
        inside = cost.splitting_bytes if deferring else cost.backward_bytes
        if inside:  # several layers, or one that computes again
            highest = max(highest, now - cost.saved_bytes + inside)
        use(place[index], (deferring and cost.defers_input) - cost.saves_input)
        use(place[index + 1], -int(cost.saves_output))
        own += (cost.deferred_bytes if deferring else 0) - cost.saved_bytes
        now = own + sum(sizes[b] for b, count in users.items() if count)
        highest = max(highest, now)
    return highest, now if costs else 0
