"""What a layer says it costs is what the meter and the FLOP counter measure, for every layer."""

import numpy as np
import pytest

from minidist import nn
from minidist.engine.array import work
from minidist.engine.seeds import draws
from minidist.engine.tensor import Tensor
from minidist.inspect.meter import measure_saved
from minidist.models import mlp

IMAGE, ROWS, TOKENS = (2, 4, 6, 6), (3, 8), (2, 70, 8)

LAYERS = {
    "Linear": (nn.Linear(8, 5), ROWS),
    "Linear, no bias": (nn.Linear(8, 5, bias=False), TOKENS),
    "Embedding": (nn.Embedding(10, 4), (2, 5)),
    "Flatten": (nn.Flatten(), IMAGE),
    "Flatten, view": (nn.Flatten(), TOKENS),
    "ReLU": (nn.ReLU(), ROWS),
    "Tanh": (nn.Tanh(), ROWS),
    "Sigmoid": (nn.Sigmoid(), ROWS),
    "GELU": (nn.GELU(), ROWS),
    "GELU exact": (nn.GELU(exact=True), ROWS),
    "SiLU": (nn.SiLU(), ROWS),
    "Dropout": (nn.Dropout(0.5), ROWS),
    "Dropout, off": (nn.Dropout(0.5).eval(), ROWS),
    "LayerNorm": (nn.LayerNorm(8), TOKENS),
    "LayerNorm, no bias": (nn.LayerNorm(8, bias=False), TOKENS),
    "RMSNorm": (nn.RMSNorm(8), TOKENS),
    "BatchNorm": (nn.BatchNorm(4), IMAGE),
    "BatchNorm, off": (nn.BatchNorm(4).eval(), IMAGE),
    "Conv2d": (nn.Conv2d(4, 6, 3), IMAGE),
    "Conv2d, all options": (nn.Conv2d(4, 6, 3, 2, 1, groups=2, bias=False), IMAGE),
    "MaxPool2d": (nn.MaxPool2d(2), IMAGE),
    "MaxPool2d, padded": (nn.MaxPool2d(3, 2, 1), IMAGE),
    "AvgPool2d": (nn.AvgPool2d(3, 1, 1), IMAGE),
    "Conv2d of pairs": (nn.Conv2d(4, 6, (2, 3), (1, 2), (1, 0), dilation=(2, 1)), IMAGE),
    "Conv1d": (nn.Conv1d(5, 6, 3, 2, 1, dilation=2), (2, 5, 9)),
    "Attention": (nn.CausalSelfAttention(8, 4), TOKENS),
    "Attention, grouped": (nn.CausalSelfAttention(8, 4, 2), TOKENS),
    "Attention, rotary": (nn.CausalSelfAttention(8, 4, 2, rotary=True), TOKENS),
    "Residual": (nn.Residual(nn.LayerNorm(8), nn.Linear(8, 8), nn.Tanh()), TOKENS),
    "Sequential": (nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.5), nn.GELU()), ROWS),
    "MLP": (mlp((8, 6, 5, 4)), (3, 2, 4)),
    "CNN": (
        nn.Sequential(
            nn.Conv2d(4, 4, 3), nn.BatchNorm(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(16, 3),
        ),
        IMAGE,
    ),
    "CrossEntropy": (nn.CrossEntropy(), ROWS),
    "CrossEntropy, ignoring": (nn.CrossEntropy(ignore_index=0, label_smoothing=0.1), ROWS),
    "MeanSquaredError": (nn.MeanSquaredError(), ROWS),
    "BinaryCrossEntropy": (nn.BinaryCrossEntropy(), ROWS),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", LAYERS)
def test_saved_bytes_and_flops_are_as_predicted(name, dtype):
    layer, shape = LAYERS[name]
    layer.init(0, dtype=dtype)
    itemsize = np.dtype(dtype).itemsize
    cost = layer.cost(shape, itemsize)
    if isinstance(layer, nn.Embedding):
        x = np.zeros(shape, np.int64)
    else:
        values = np.random.default_rng(0).standard_normal(shape).astype(dtype)
        x = Tensor(values, requires_grad=True)
    targets = ()
    if isinstance(layer, nn.CrossEntropy):
        targets = (np.ones(shape[:-1], np.int64),)
    elif "loss" in type(layer).__module__:
        targets = (np.ones(shape, dtype),)

    work.flops = 0
    with measure_saved(exclude=[layer.flat.data_and_loss]) as meter, draws(0, 0):
        out = layer(x, *targets)
        measured = meter.bytes
        forward = work.flops
        if out.requires_grad and not cost.view:
            out.backward(np.ones(out.shape, dtype))
    predicted = cost.saved_bytes
    predicted += cost.saves_input * int(np.prod(shape)) * itemsize
    predicted += cost.saves_output * int(np.prod(cost.shape)) * itemsize
    assert out.shape == cost.shape
    assert out.dtype == dtype
    assert forward == cost.flops, f"{forward} flops measured, {cost.flops} predicted"
    assert measured == predicted, f"{measured} bytes measured, {predicted} predicted"
    if out.requires_grad and not cost.view:
        assert meter.bytes == 0, f"{meter.bytes} bytes still held after backward"
        assert work.flops - forward == cost.input_flops + cost.weight_flops
