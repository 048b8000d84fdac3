"""One rank's share of a model for inference on several ranks: some blocks, and a part of each.

    pp = 2, tp = 2             tp 0                    tp 1
    stage 0    embedding, block 1, half of      the other half of heads,
               heads, hidden units, tokens      hidden units and tokens
    stage 1    block 2, head: half              half

Layers are cut by the plan of tensor parallelism (``parallel.tensor``); blocks are assigned to
stages as in a pipeline, by FLOPs. Here only codes are added: a weight that was quantized in groups
is cut like a float weight. Each rank has some of the serial model's codes, so the sum over ranks is
the serial product. A cut by rows must not divide a group of inputs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minidist import ops
from minidist.comm.comm import Comm
from minidist.compress.grouped import GroupedLinear, pack4, unpack4
from minidist.compress.rebuild import declared, dtype_of, exchange
from minidist.engine.array import has_numbers
from minidist.engine.tensor import Tensor
from minidist.models.gpt import Block
from minidist.nn.layers import Linear, Sequential
from minidist.nn.losses import CrossEntropy
from minidist.nn.module import Module, Shape
from minidist.ops import collectives as messages
from minidist.parallel.pipeline.stages import block_flops, cut
from minidist.parallel.tensor.axis import Axis, Sum, Traffic
from minidist.parallel.tensor.cut import Cut
from minidist.parallel.tensor.layers import RowParallel
from minidist.parallel.tensor.part import TensorPart


def share_of(model: Sequential, tensor: Comm, stage: int, stages: int) -> Sequential:
    """This rank's part of the blocks of ``stage``, initialised with the model's values.

    ``model``: initialised, equal on all ranks; it is not changed. ``tensor``: the ranks of the
    tensor axis. Raises ValueError for more stages than blocks, and for groups of codes that would
    be cut; TypeError for layers that cannot be cut.
    """
    whole = declared(model)
    assert isinstance(whole, Sequential)
    start, stop = cut(block_flops(whole), stages)[stage]
    read = has_numbers(model.flat.data)
    values = model.state() if read else {}
    if tensor.size > 1:
        whole, values = _cut_layers(whole, values, tensor)
    mine = whole[start:stop].init(0, dtype_of(model))
    names = [*mine.named_parameters(), *mine.named_buffers()]
    return mine.load({name: values[name] for name in names}) if read else mine


def _cut_layers(
    model: Sequential, values: dict[str, np.ndarray], tensor: Comm
) -> tuple[Sequential, dict[str, np.ndarray]]:
    """(declared model with this rank's part of each layer, values of these parts)."""
    for path, block in model.named_modules().items():
        if isinstance(block, Block):
            attention = block.attention
            for layer in (attention.qkv, attention.out, block.up, block.down):
                if not isinstance(layer, (Linear, GroupedLinear)):
                    raise TypeError(
                        f"block {path} has a {type(layer).__name__}, which is not cut over ranks: "
                        "tensor parallelism cuts linear layers, and those with weights quantized "
                        "in groups. Answer on replicas (dp) or stages (pp)"
                    )
    coded = {
        path: layer
        for path, layer in model.named_modules().items()
        if isinstance(layer, GroupedLinear)
    }

    def plain(path: str, layer: Module) -> Module | None:
        twin = coded.get(path)
        return None if twin is None else Linear(*twin.size, twin.bias is not None)

    part = TensorPart(exchange(declared(model), plain), CrossEntropy(), tensor)  # type: ignore

    def with_codes(path: str, layer: Module) -> Module | None:
        twin = coded.get(path)
        if twin is None:
            return None
        inputs, outputs = layer.weight.declared  # of this rank
        settings: dict[str, Any] = {**twin.settings, "inputs": inputs, "outputs": outputs}
        try:
            if isinstance(layer, RowParallel):
                return GroupedRows(layer.axis, **settings)
            return GroupedLinear(**settings)
        except ValueError as error:
            raise ValueError(f"layer {path}, cut for {tensor.size} ranks: {error}") from error

    mine = exchange(part.model, with_codes)
    values = part.own(values)
    for path in coded:
        of_weight = part.cuts[f"{path}.weight"]
        if of_weight is not None and values:
            _cut_codes(path, coded[path], of_weight, tensor.rank, values)
    return mine, values  # type: ignore[return-value]


def _cut_codes(
    path: str, layer: GroupedLinear, of_weight: Cut, rank: int, values: dict[str, np.ndarray]
) -> None:
    """Replace a layer's codes and scales in ``values`` by this rank's part."""
    codes, scale = values[f"{path}.codes"], values[f"{path}.scale"]
    codes = unpack4(codes) if layer.bits == 4 else codes
    if of_weight.axis == 0:  # rows: whole groups of inputs
        ends = {end for ranges in of_weight.ranges for pair in ranges for end in pair}
        if inside := [end for end in sorted(ends) if end % layer.group]:
            raise ValueError(
                f"layer {path}: it would be cut at input {inside[0]}, inside a group of "
                f"{layer.group} inputs with one scale: quantize in smaller groups, or use another "
                "number of ranks"
            )
        groups = tuple(
            tuple((start // layer.group, stop // layer.group) for start, stop in ranges)
            for ranges in of_weight.ranges
        )
        scale = Cut("rows", 0, groups).take(scale, rank)
    else:
        scale = of_weight.take(scale, rank)
    codes = of_weight.take(codes, rank)
    values[f"{path}.codes"] = pack4(codes) if layer.bits == 4 else codes
    values[f"{path}.scale"] = scale


class GroupedRows(GroupedLinear):
    """This rank's rows of a quantized layer, summed over ranks; the bias is added once, after."""

    def __init__(self, axis: Axis, **settings: Any) -> None:
        super().__init__(**settings)
        self.axis = axis

    def forward(self, x: Any) -> Tensor:
        y = messages.reduce_from(ops.linear(x, Tensor(self.weight())), self.axis.group)
        return y if self.bias is None else ops.add(y, Tensor(self.bias.data))

    def traffic(self, shape: Shape, itemsize: int, input_grad: bool = True) -> Traffic:
        count = int(np.prod(shape[:-1])) * self.size[1]
        return Traffic([Sum("all_reduce", count, itemsize, self.axis.size)])
