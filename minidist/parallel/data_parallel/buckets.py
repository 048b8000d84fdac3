"""Buckets: in which portions gradients are sent while the backward still makes them.

    flat gradients   [ w1 ................ | b1 | w2 ...... | b2 | w3 .. | b3 | loss ]
    the backward     ◀──────────────────────────────────────────────────────── makes
    buckets          [     last: small     |   second       |     first: goes at once ]

The backward makes the last layers' gradients first, so buckets go in reverse order. A large bucket
pays few latencies and starts late, a small one the other way about; the last one, which nothing is
left to hide, should be small. Li et al., arXiv 2006.15704, section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass

from minidist.nn.layers import Sequential
from minidist.nn.module import Shape


@dataclass(frozen=True)
class Bucket:
    """A slice of the flat gradients, and whose gradients lie in it."""

    part: slice
    names: frozenset[str]


def cut_buckets(slices: dict[str, slice], size: int, last: int) -> list[Bucket]:
    """Parameters in reverse order, in buckets that close at ``size`` elements.

    The last bucket takes the first parameters, up to ``last`` elements; the first takes the loss.
    """
    names = list(slices)
    first_layers = 1
    while first_layers < len(names) and slices[names[first_layers]].stop <= last:
        first_layers += 1
    groups: list[list[str]] = [[]]
    for name in reversed(names[first_layers:]):
        groups[-1].append(name)
        if slices[groups[-1][0]].stop - slices[name].start >= size:
            groups.append([])
    groups = [group for group in groups if group] + [names[first_layers - 1 :: -1]]
    buckets = []
    for group in groups:
        loss = 1 if group[0] == names[-1] else 0
        part = slice(slices[group[-1]].start, slices[group[0]].stop + loss)
        buckets.append(Bucket(part, frozenset(group)))
    return buckets


def backward_left(model: Sequential, shape: Shape) -> dict[str, int]:
    """FLOPs of the backward that are left when a parameter's gradient is ready, by name."""
    left: dict[str, int] = {}
    seen: set[int] = set()
    after, input_grad = 0, False
    for (number, block), cost in zip(model.blocks.items(), model.costs(shape), strict=True):
        for name, parameter in block.named_parameters(f"{number}.").items():
            if id(parameter) not in seen:  # a shared one is ready after its first use in forward
                seen.add(id(parameter))
                left[name] = after
        after += cost.weight_flops + (cost.input_flops if input_grad else 0)
        input_grad = input_grad or bool(block.named_parameters())
    return left
