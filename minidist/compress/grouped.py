"""Weight-only quantization in groups: int8 or int4 codes, with a scale for each group of weights.

    a column of a weight (inputs, outputs)      group 0          group 1
    codes                                    7 -3  0 ... 5 │ 1  7 -2 ... 4        4 bits each
    scales                                       0.021     │     0.083           float32

A scale is used by ``group`` weights of one output. So one large weight makes only its own group
coarse, and 4 bits are enough. Activations stay float and need no calibration. Bits for each weight:
b + 32 / group; int4 in groups of 32 takes 5, about a sixth of float32.

In memory two int4 codes share a byte. Each forward converts them to floats, which costs time here.
If the speed is limited by reading weights from memory (large models, small batches), a fused kernel
saves time, because fewer bytes are read.

Source: Shen et al., "Q-BERT", arXiv 1909.05840, section 3.2 (groups); Frantar et al., "GPTQ", arXiv
2210.17323, section 2 (weights only; here they are only rounded to nearest).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minidist import ops
from minidist.compress.affine import Grid
from minidist.compress.calibration import weight_grid
from minidist.compress.rebuild import declared, dtype_of, exchange, filled, refuse_diverged
from minidist.engine.array import Array, module_of
from minidist.engine.tensor import Tensor
from minidist.nn.layers import Linear
from minidist.nn.module import Buffer, LayerCost, Module, Shape


class GroupedLinear(Module):
    """A linear layer whose weight is stored as int8 or int4 codes, in groups along the inputs.

    The input gets a gradient; weight and bias are not trained. Raises ValueError for other bits,
    for groups that do not divide the inputs, and for 4 bits with an odd number of outputs.
    """

    def __init__(
        self, inputs: int, outputs: int, bits: int = 4, group: int = 32, bias: bool = True
    ) -> None:
        if bits not in (4, 8):
            raise ValueError(f"GroupedLinear: codes have 4 or 8 bits, not {bits}")
        if group < 1 or inputs % group:
            raise ValueError(
                f"GroupedLinear: groups of {group} do not divide {inputs} inputs: choose a divisor"
            )
        if bits == 4 and outputs % 2:
            raise ValueError(
                f"GroupedLinear: two 4-bit codes share a byte, so {outputs} outputs must be even: "
                "use 8 bits"
            )
        self.bits, self.group, self.size = bits, group, (inputs, outputs)
        stored = (inputs, outputs * bits // 8)
        self.codes = Buffer(stored, 0, np.uint8 if bits == 4 else np.int8)
        self.scale = Buffer((inputs // group, outputs), 1)
        self.bias = Buffer((outputs,), 0) if bias else None

    @property
    def settings(self) -> dict[str, Any]:
        inputs, outputs = self.size
        return {
            "inputs": inputs,
            "outputs": outputs,
            "bits": self.bits,
            "group": self.group,
            "bias": self.bias is not None,
        }

    def weight(self) -> Array:
        """The weight as floats: (inputs, outputs)."""
        codes = unpack4(self.codes.data) if self.bits == 4 else self.codes.data
        scale = self.scale.data
        groups, outputs = scale.shape
        grouped = codes.reshape(groups, self.group, outputs).astype(scale.dtype)
        grouped *= scale[:, None]
        return grouped.reshape(self.size)

    def forward(self, x: Any) -> Tensor:
        bias = None if self.bias is None else Tensor(self.bias.data)
        return ops.linear(x, Tensor(self.weight()), bias)

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        """Saves the weight as floats, for the gradient of the input."""
        inputs, outputs = self.size
        flops = 2 * int(np.prod(shape)) * outputs
        return LayerCost(
            (*shape[:-1], outputs),
            flops,
            flops,
            saved_bytes=inputs * outputs * itemsize,
        )

    def __repr__(self) -> str:
        return f"GroupedLinear{self.size}, int{self.bits} in groups of {self.group}"


def pack4(codes: Array) -> Array:
    """int8 codes in [-8, 7], (i, o) → bytes (i, o / 2): columns 2j and 2j + 1 share a byte."""
    nibbles = codes.view(np.uint8) & 15
    return nibbles[:, ::2] | (nibbles[:, 1::2] << 4)


def unpack4(packed: Array) -> Array:
    """The reverse of ``pack4``."""
    xp = module_of(packed)
    codes = xp.empty((packed.shape[0], 2 * packed.shape[1]), np.int8)
    codes[:, ::2] = (packed << 4).view(np.int8) >> 4  # an arithmetic shift: the sign is extended
    codes[:, 1::2] = packed.view(np.int8) >> 4
    return codes


def quantize_weights(
    model: Module,
    bits: int = 4,
    group: int = 32,
    method: str = "range",
    where: Callable[[str], bool] = lambda path: True,
) -> Module:
    """A new model whose linear layers store int8 or int4 codes in groups.

    ``where(path)`` selects layers. ``method``: the calibration of a group's range, see
    calibration.py. Raises ValueError, with the layer's name, if ``group`` does not divide a layer's
    inputs; for weights that are not finite; and if no layer is selected.
    """
    state = model.state()
    dtype = dtype_of(model)
    changed = []

    def change(path: str, layer: Module) -> Module | None:
        if not isinstance(layer, Linear) or not where(path):
            return None
        inputs, outputs = layer.weight.declared
        try:
            new = GroupedLinear(inputs, outputs, bits, group, layer.bias is not None)
        except ValueError as error:
            raise ValueError(f"layer {path}: {error}") from error
        refuse_diverged(f"quantize_weights: {path}.weight", state[f"{path}.weight"])
        weight = state.pop(f"{path}.weight").reshape(inputs // group, group, outputs)
        rows = weight.transpose(0, 2, 1).reshape(-1, group)  # (groups · o, group)
        grid = weight_grid(rows, method, bits)
        wide = Grid(grid.scale[:, None], grid.zero[:, None], grid.least, grid.most)
        codes = wide.encode(rows).reshape(-1, outputs, group).transpose(0, 2, 1)
        codes = np.ascontiguousarray(codes.reshape(inputs, outputs))
        state[f"{path}.codes"] = pack4(codes) if bits == 4 else codes
        state[f"{path}.scale"] = grid.scale.reshape(-1, outputs)
        changed.append(path)
        return new

    new = exchange(declared(model), change)
    if not changed:
        raise ValueError("quantize_weights: no linear layer was selected")
    return filled(new, state, dtype)
