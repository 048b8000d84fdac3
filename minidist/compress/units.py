"""The slices of arrays that belong to one unit: a channel, a hidden unit, or a head.

To remove an output of a layer, its weights are removed, and also the weights of the next layer that
read it. So structured pruning must know which weights read which units:

    conv 1: kernel j, bias j  ──channel j──▸  conv 2: the input channel j of every kernel
    conv 2: kernel j, bias j  ──channel j──▸  linear: the rows of all pixels of channel j
    up:     column j, bias j  ──hidden j──▸   down: row j
    qkv:    columns of head j ──head j──▸     out: the rows of head j

A ``Cut`` has the indices of the units along one axis of one array; ``Units`` has all cuts of a
layer's units. The outputs of a model, and arrays that are added to a residual stream, are not
units, because other layers fix their number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from minidist.models.gpt import Block
from minidist.nn.activations import GELU, Dropout, ReLU, Sigmoid, SiLU, Tanh
from minidist.nn.attention import CausalSelfAttention
from minidist.nn.convolution import AvgPool2d, Conv2d, MaxPool2d
from minidist.nn.layers import Flatten, Linear, Sequential
from minidist.nn.module import Module
from minidist.nn.normalization import BatchNorm

# Layers that compute each unit's output from this unit only.
UNIT_BY_UNIT = (ReLU, Tanh, Sigmoid, GELU, SiLU, Dropout, MaxPool2d, AvgPool2d)


@dataclass(frozen=True)
class Cut:
    """Units along ``axis`` of array ``name``: unit i has the indices ``places[i]``."""

    name: str
    axis: int
    places: np.ndarray  # (units, indices of each)


@dataclass(frozen=True)
class Units:
    """The channels, hidden units or heads of ``layer``.

    ``own``: the arrays that compute them; ``readers``: those of the next layer that read them.
    """

    layer: str
    kind: str
    own: tuple[Cut, ...]
    readers: tuple[Cut, ...]

    @property
    def count(self) -> int:
        return len(self.own[0].places)


def find_units(model: Module) -> dict[str, Units]:
    """All units that can be removed, by the name of the layer that computes them.

    Finds outputs of consecutive layers in a ``Sequential``, heads of ``CausalSelfAttention``, and
    hidden units of GPT's blocks. Grouped convolutions have none.
    """
    found = [
        units
        for path, module in model.named_modules().items()
        for units in _inside(module, f"{path}." if path else "")
    ]
    return {units.layer: units for units in found}


def _inside(module: Module, prefix: str) -> Iterator[Units]:
    if isinstance(module, Sequential):
        yield from _in_a_row(module, prefix)
    elif isinstance(module, Block) and _plain(module.up, module.down):
        hidden = _single(_outputs(module.up))
        yield Units(
            f"{prefix}up",
            "hidden unit",
            _own(f"{prefix}up", module.up, hidden),
            (Cut(f"{prefix}down.weight", 0, hidden),),
        )
    elif isinstance(module, CausalSelfAttention) and _plain(module.qkv, module.out):
        yield _heads(module, prefix)


def _in_a_row(model: Sequential, prefix: str) -> Iterator[Units]:
    """Units of a layer that the next layer reads, with only UNIT_BY_UNIT layers between."""
    maker: tuple[str, Linear | Conv2d] | None = None
    own: list[Cut] = []
    for name, block in model.blocks.items():
        path = f"{prefix}{name}"
        if isinstance(block, (Linear, Conv2d)) and getattr(block, "groups", 1) == 1:
            if maker is not None:
                units = _outputs(maker[1])
                axis = 0 if isinstance(block, Linear) else 1
                inputs = block.weight.declared[axis]
                # After Flatten, a channel has inputs / units consecutive features.
                places = np.arange(inputs).reshape(units, -1)
                kind = "channel" if isinstance(maker[1], Conv2d) else "hidden unit"
                yield Units(maker[0], kind, tuple(own), (Cut(f"{path}.weight", axis, places),))
            maker = path, block
            own = [*_own(path, block, _single(_outputs(block)))]
        elif isinstance(block, BatchNorm) and maker is not None:
            named = ("weight", "bias", "mean", "variance")
            own += [Cut(f"{path}.{one}", 0, _single(_outputs(maker[1]))) for one in named]
        elif not isinstance(block, (*UNIT_BY_UNIT, Flatten)):
            maker = None


def _heads(attention: CausalSelfAttention, prefix: str) -> Units:
    """The units of an attention layer: a head of keys and values with the query heads using it."""
    heads, groups = attention.heads, attention.groups
    packed = attention.qkv.weight.declared[1]
    d = packed // (heads + 2 * groups)
    features = np.arange(packed).reshape(heads + 2 * groups, d)  # queries, keys, values
    queries = features[:heads].reshape(groups, -1)  # (groups, heads / groups · d)
    keys, values = features[heads : heads + groups], features[heads + groups :]
    together = np.concatenate([queries, keys, values], axis=1)
    own = _own(f"{prefix}qkv", attention.qkv, together)
    return Units(prefix.removesuffix("."), "head", own, (Cut(f"{prefix}out.weight", 0, queries),))


def _plain(*layers: Module) -> bool:
    """Whether all are linear layers: another layer may have replaced one."""
    return all(isinstance(layer, Linear) for layer in layers)


def _outputs(layer: Linear | Conv2d) -> int:
    return layer.weight.declared[1 if isinstance(layer, Linear) else 0]


def _own(path: str, layer: Linear | Conv2d, places: np.ndarray) -> tuple[Cut, ...]:
    weight = Cut(f"{path}.weight", 1 if isinstance(layer, Linear) else 0, places)
    return (weight,) if layer.bias is None else (weight, Cut(f"{path}.bias", 0, places))


def _single(count: int) -> np.ndarray:
    """``count`` units of one index each."""
    return np.arange(count)[:, None]
