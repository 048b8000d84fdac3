"""Layers that compute with int8: codes of weights and activations, sums of integers.

With weights w = S_w q_w (symmetric) and inputs x = S_x (q_x - Z_x), a linear layer is

    y = x w + b = S_x S_w · Σ (q_x - Z_x) q_w + b
                            ╰──── integers ─────╯

The sum is exact, so an int8 layer gives the same bits in any order of addition. S_w is one number
for the layer ("per tensor"), or one for each output channel ("per channel"), so that one large
channel does not make all others coarse. S_x and Z_x come from calibration on some data. A
convolution is the same sum over patches; the code of its padding (real 0) is Z_x.

Memory: one byte a weight instead of four. Time: a processor with int8 instructions computes this up
to four times faster than float32. NumPy does not use them; here codes are converted to floating
point before the product, so int8 is *slower* than float32. A sum of integers is exact in float32 if
it is below 2²⁴, so for up to 518 products of 255 · 127; for more products float64 is used.

Source: Jacob et al., arXiv 1712.05877, section 2.2; per channel: Krishnamoorthi, "Quantizing deep
convolutional networks for efficient inference", arXiv 1806.08342, section 2.4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from minidist.compress.affine import Grid, asymmetric
from minidist.compress.calibration import calibration, observe, weight_grid
from minidist.compress.rebuild import declared, dtype_of, exchange, filled, refuse_diverged
from minidist.engine.array import Array, module_of, to_host, work
from minidist.engine.tensor import Tensor, as_tensor
from minidist.nn.convolution import Conv2d
from minidist.nn.layers import Linear
from minidist.nn.module import Buffer, LayerCost, Module, Shape
from minidist.ops.convolution import Pair, as_pair, convolved_length, correlate
from minidist.ops.operands import ShapeError

LARGEST = 255 * 127  # of a product (q_x - Z_x) · q_w


class Int8Layer(Module):
    """Base of both layers: codes of the weights, their scales, and the grid of the inputs."""

    def __init__(self, shape: Shape, outputs: int, bias: bool, per_channel: bool) -> None:
        self.outputs = outputs
        self.codes = Buffer(shape, 0, np.int8)  # q_w
        self.scale = Buffer((outputs if per_channel else 1,), 1)  # S_w
        self.input_scale = Buffer((1,), 1)  # S_x
        self.input_zero = Buffer((1,), 0, np.int8)  # Z_x
        self.bias = Buffer((outputs,), 0) if bias else None

    def centred(self, x: Any) -> Array:
        """q_x - Z_x of the input, in a float dtype in which the sums are exact.

        Raises TypeError if the input needs a gradient.
        """
        x = as_tensor(x)
        if x.node is not None:
            raise TypeError(
                f"{type(self).__name__} computes no gradients: use it under no_grad(), and train "
                "the model before it is quantized, or with minidist.compress.prepare"
            )
        codes = self.grid().encode(x.data)
        products = self.codes.data.size // self.outputs
        exact = np.float32 if products * LARGEST <= 1 << 24 else np.float64
        return codes.astype(exact) - self.input_zero.data.astype(exact)

    def grid(self) -> Grid:
        """The grid of the inputs."""
        zero = self.input_zero.data.astype(self.input_scale.data.dtype)
        return Grid(self.input_scale.data, zero, -128, 127)

    def real(self, sums: Array) -> Array:
        """S_x S_w · sums + b, for sums (..., outputs)."""
        y = sums.astype(self.scale.data.dtype) * (self.input_scale.data * self.scale.data)
        return y if self.bias is None else y + self.bias.data


class Int8Linear(Int8Layer):
    """A linear layer on codes: (..., inputs) → (..., outputs)."""

    def __init__(
        self, inputs: int, outputs: int, bias: bool = True, per_channel: bool = True
    ) -> None:
        super().__init__((inputs, outputs), outputs, bias, per_channel)

    @property
    def settings(self) -> dict[str, Any]:
        inputs, outputs = self.codes.declared
        return {
            "inputs": inputs,
            "outputs": outputs,
            "bias": self.bias is not None,
            "per_channel": self.scale.declared == (outputs,),
        }

    def forward(self, x: Any) -> Tensor:
        codes = self.codes.data
        if x.shape[-1:] != codes.shape[:1]:
            raise ShapeError(f"Int8Linear: input {x.shape} does not fit {codes.shape} = (in, out)")
        rows = self.centred(x)
        work.flops += 2 * rows.size * codes.shape[1]
        return Tensor(self.real(rows @ codes.astype(rows.dtype)))  # (.., i) @ (i, o) -> (.., o)

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        return LayerCost((*shape[:-1], self.outputs), 2 * int(np.prod(shape)) * self.outputs)

    def __repr__(self) -> str:
        return f"Int8Linear{self.codes.declared}"


class Int8Conv2d(Int8Layer):
    """A convolution on codes: (n, inputs, h, w) → (n, outputs, oh, ow)."""

    def __init__(
        self,
        shape: Shape,
        stride: int | Pair = 1,
        padding: int | Pair = 0,
        groups: int = 1,
        bias: bool = True,
        per_channel: bool = True,
        dilation: int | Pair = 1,
    ) -> None:
        """``shape``: of the weight, (outputs, inputs / groups, kernel, kernel)."""
        super().__init__(tuple(shape), shape[0], bias, per_channel)
        self.stride = as_pair("Int8Conv2d", "stride", stride, 1)
        self.padding = as_pair("Int8Conv2d", "padding", padding, 0)
        self.dilation = as_pair("Int8Conv2d", "dilation", dilation, 1)
        self.groups = groups

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "shape": list(self.codes.declared),
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
            "bias": self.bias is not None,
            "per_channel": self.scale.declared == (self.outputs,),
        }

    def forward(self, x: Any) -> Tensor:
        outputs, inputs, kh, kw = self.codes.data.shape
        if x.ndim != 4 or x.shape[1] != inputs * self.groups:
            raise ShapeError(
                f"Int8Conv2d: input {x.shape} is not (n, {inputs * self.groups}, h, w)"
            )
        images = self.centred(x)
        xp = module_of(images)
        oh, ow = self._places(x.shape)
        sums = xp.empty((len(images), oh, ow, outputs), images.dtype)
        work.flops += 2 * sums.size * inputs * kh * kw
        kernels = self.codes.data.astype(images.dtype)
        correlate(images, kernels, sums, self.stride, self.padding, self.groups, self.dilation)
        return Tensor(self.real(sums).transpose(0, 3, 1, 2))

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        outputs, inputs, kh, kw = self.codes.declared
        oh, ow = self._places(shape)
        out = (shape[0], outputs, oh, ow)
        return LayerCost(out, 2 * int(np.prod(out)) * inputs * kh * kw)

    def _places(self, shape: Shape) -> Pair:
        """Height and width of the result."""
        kernel = self.codes.declared[2:]
        settings = zip(shape[2:], kernel, self.stride, self.padding, self.dilation, strict=True)
        height, width = (convolved_length(*one) for one in settings)
        return height, width

    def __repr__(self) -> str:
        outputs, inputs, kernel, _ = self.codes.declared
        return f"Int8Conv2d({inputs * self.groups}, {outputs}, kernel={kernel})"


def channels_first(weight: np.ndarray) -> np.ndarray:
    """A weight as rows, one for each output: (i, o) → (o, i); (o, c, k, k) → (o, c·k·k)."""
    return weight.T if weight.ndim == 2 else weight.reshape(len(weight), -1)


def channels_back(rows: np.ndarray, shape: Shape) -> np.ndarray:
    """The reverse of ``channels_first``."""
    return np.ascontiguousarray(rows.T if len(shape) == 2 else rows.reshape(shape))


def quantizable(model: Module) -> dict[str, Linear | Conv2d]:
    """The linear layers and convolutions of a model, by name. Raises ValueError if it has none."""
    found = model.named_modules().items()
    layers = {path: layer for path, layer in found if isinstance(layer, (Linear, Conv2d))}
    if not layers:
        raise ValueError("the model has no linear layers and no convolutions to quantize")
    return layers


def quantize_int8(
    model: Module,
    batches: Iterable[Any],
    method: str = "range",
    per_channel: bool = True,
    weight_method: str = "range",
) -> Module:
    """A new model whose linear layers and convolutions compute with int8.

    ``batches``: inputs of the model, from which calibration ``method`` finds the ranges of
    activations. ``weight_method``: the calibration of weights. Both are "range", "percentile" or
    "squared error": see calibration.py. Norms, embeddings and biases stay float. Raises ValueError
    for an unknown method, for a model without layers to quantize, and for weights or activations
    that are not finite.
    """
    chosen = calibration(method)
    values = observe(model, quantizable(model), batches)
    ranges = {}
    for path, sample in values.items():
        low, high = chosen(sample[None], 8)
        ranges[path] = float(low[0]), float(high[0])
    return with_ranges(model, ranges, per_channel, weight_method)


def with_ranges(
    model: Module,
    ranges: Mapping[str, tuple[float, float]],
    per_channel: bool = True,
    weight_method: str = "range",
) -> Module:
    """``quantize_int8`` with given ranges of the layers' inputs, (low, high) by name."""
    state = model.state()
    dtype = dtype_of(model)

    def change(path: str, layer: Module) -> Module | None:
        if path not in ranges or not isinstance(layer, (Linear, Conv2d)):
            return None
        weight = state.pop(f"{path}.weight")
        refuse_diverged(f"quantize_int8: {path}.weight", weight)
        rows = channels_first(weight)  # (o, i)
        grid = weight_grid(rows if per_channel else rows.reshape(1, -1), weight_method)
        codes = Grid(grid.scale[:, None], grid.zero[:, None], grid.least, grid.most).encode(rows)
        low, high = (np.array([bound], dtype) for bound in ranges[path])
        inputs = asymmetric(low, high)
        state[f"{path}.codes"] = channels_back(codes, weight.shape)
        state[f"{path}.scale"] = grid.scale
        state[f"{path}.input_scale"] = inputs.scale
        state[f"{path}.input_zero"] = to_host(inputs.zero).astype(np.int8)
        biased = layer.bias is not None
        if isinstance(layer, Linear):
            inputs_outputs: tuple[int, int] = weight.shape
            return Int8Linear(*inputs_outputs, biased, per_channel)
        convolution = layer.stride, layer.padding, layer.groups
        return Int8Conv2d(weight.shape, *convolution, biased, per_channel, layer.dilation)

    return filled(exchange(declared(model), change), state, dtype)
