"""Codes: rounding errors within S/2, sums in whole numbers, and training that sees the rounding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minidist import Tensor, nn, no_grad
from minidist.compress import (
    CALIBRATIONS,
    GroupedLinear,
    Int8Conv2d,
    Int8Linear,
    asymmetric,
    convert,
    fake_quantize,
    observe,
    prepare,
    quantize_int8,
    quantize_weights,
    symmetric,
)
from minidist.compress.calibration import weight_grid
from minidist.compress.grouped import pack4, unpack4
from minidist.compress.training import fit
from minidist.data import Batches, Dataset
from minidist.models import cnn, gpt
from tests.compress.test_pruning import images, shifted, small_cnn
from tests.examples import examples

random = np.random.default_rng(0)


@examples(60)
@given(st.floats(-50, 50), st.floats(0, 60), st.integers(2, 8), st.integers(0, 9))
def test_rounding_errors_are_at_most_half_a_step_and_zero_is_exact(low, length, bits, seed):
    grid = asymmetric(np.array([low]), np.array([low + length]), bits)
    low, high = min(low, 0), max(low + length, 0)
    r = np.random.default_rng(seed).uniform(low, high, 50)
    assert grid.rounded(np.zeros(1)) == 0
    assert grid.least == -(2 ** (bits - 1)) and grid.most == 2 ** (bits - 1) - 1
    # Z is rounded, so one end may be clamped by up to half a step.
    step = grid.scale[0]
    assert np.abs(grid.rounded(r) - r).max() <= step * (1 + 1e-9)
    inner = r[grid.inside(r)]
    assert np.abs(grid.rounded(inner) - inner).max(initial=0) <= step / 2 * (1 + 1e-9)
    assert step <= max((high - low) / (2**bits - 1), 1) + 1e-12


def test_symmetric_codes_of_each_channel_by_hand():
    grid = symmetric(np.array([[1.27], [254.0], [0.0]]))
    r = np.array([[1.27, -0.005, 0.016], [300.0, -2.0, 3.1], [0.0, 0.2, -9.0]])
    assert grid.encode(r).tolist() == [[127, 0, 2], [127, -1, 2], [0, 0, -9]]
    assert grid.encode(r).dtype == np.int8
    assert grid.inside(r).tolist() == [[True] * 3, [False, True, True], [True] * 3]


def test_calibrations_narrow_the_range_of_an_outlier():
    rows = np.random.default_rng(0).standard_normal((1, 20000)).astype(np.float32)
    rows[0, 7] = 100
    ranges = {name: find(rows, 4) for name, find in CALIBRATIONS.items()}
    assert ranges["range"] == (rows.min(), 100)
    assert ranges["percentile"][1] < 5
    assert ranges["squared error"][1] < 60

    def error(name):
        return float(((asymmetric(*ranges[name], 4).rounded(rows) - rows) ** 2).mean())

    assert error("squared error") < 0.7 * error("range")
    # Of weights with outliers, at 4 bits, channel by channel.
    weights = np.random.default_rng(1).standard_normal((3, 400))
    weights[1, 0] = 30
    errors = {}
    for name in CALIBRATIONS:
        grid = weight_grid(weights, name, 4)
        scale = grid.scale[:, None]
        errors[name] = (np.clip(np.rint(weights / scale), -7, 7) * scale - weights) ** 2
    assert errors["squared error"].mean() < 0.97 * errors["range"].mean()
    assert (errors["squared error"].mean(axis=1) <= errors["range"].mean(axis=1) + 1e-12).all()


@pytest.mark.parametrize("inputs", [518, 519])  # sums that float32 has exactly, and that it has not
def test_int8_linear_is_the_formula_in_whole_numbers(inputs):
    layer = Int8Linear(inputs, 5).init(0)
    codes = random.integers(40, 128, (inputs, 5)).astype(np.int8)
    codes[:, 0] = 127
    scale = random.uniform(0.01, 0.02, 5).astype(np.float32)
    bias = random.standard_normal(5).astype(np.float32)
    layer.load({
        "codes": codes, "scale": scale, "bias": bias,
        "input_scale": np.array([0.5], np.float32), "input_zero": np.array([-128], np.int8),
    })  # fmt: skip
    x = random.integers(0, 256, (4, inputs)).astype(np.float32) * np.float32(0.5)
    x[0] = 127.5
    sums = (x / 0.5).astype(np.int64) @ codes.astype(np.int64)  # q_x - Z_x is x / S_x here
    expected = sums.astype(np.float32) * (np.float32(0.5) * scale) + bias
    assert (abs(sums).max() > 1 << 24) == (inputs == 519)
    assert layer.centred(x).dtype == (np.float64 if inputs == 519 else np.float32)
    np.testing.assert_array_equal(layer(x).data, expected)


def test_int8_convolution_is_the_formula_and_pads_with_the_code_of_zero():
    weight = random.standard_normal((4, 3, 3, 3)).astype(np.float32)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1)).init(0)
    model.load({"0.weight": weight, "0.bias": np.ones(4, np.float32)})
    x = random.uniform(1, 3, (2, 3, 7, 7)).astype(np.float32)  # all positive, so Z_x = -128
    small = quantize_int8(model, [x])
    layer = small.blocks["0"]
    assert isinstance(layer, Int8Conv2d) and layer.input_zero.data[0] == -128
    codes = layer.codes.data.astype(np.float64)
    q = np.clip(np.rint(x / layer.input_scale.data), 0, 255).astype(np.float64)
    exact = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False).init(0, dtype="float64")
    sums = exact.load({"weight": codes})(q).data
    scale = (layer.input_scale.data * layer.scale.data).reshape(4, 1, 1)
    got = small(x).data
    np.testing.assert_array_equal(got, sums.astype(np.float32) * scale + 1)
    np.testing.assert_allclose(got, model(x).data, atol=0.01 * np.abs(got).max())


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("method", CALIBRATIONS)
def test_int8_models_compute_nearly_the_same(method, per_channel):
    model, data = small_cnn().init(1), images(24)
    small = quantize_int8(model, [data.inputs[:12], data.inputs[12:]], method, per_channel, method)
    with no_grad():
        expected, got = model(data.inputs).data, small(data.inputs).data
    assert 1e-4 < np.abs(got - expected).max() / np.abs(expected).max() < 0.12
    assert small.blocks["4"].scale.declared == ((8,) if per_channel else (1,))
    before, after = (sum(a.nbytes for a in m.state().values()) for m in (model, small))
    assert after < 0.4 * before and not small.parameters()


def test_one_large_channel_makes_all_others_coarse_only_per_tensor():
    model = nn.Sequential(nn.Linear(20, 4)).init(0)
    model.blocks["0"].weight.data[:, 0] *= 300
    x = random.standard_normal((50, 20)).astype(np.float32)
    expected = model(x).data[:, 1:]
    errors = [np.abs(quantize_int8(model, [x], "range", each)(x).data[:, 1:] - expected).max()
              for each in (True, False)]  # fmt: skip
    assert errors[0] < 0.05 * errors[1]


def test_int4_codes_share_bytes_and_come_back():
    codes = np.arange(-8, 8, dtype=np.int8).reshape(2, 8)
    packed = pack4(codes)
    assert packed.dtype == np.uint8 and packed.shape == (2, 4)
    assert packed[0, 0] == 0x98  # -7 is 9 in the upper half, -8 is 8 in the lower
    np.testing.assert_array_equal(unpack4(packed), codes)


@pytest.mark.parametrize(("bits", "group"), [(8, 4), (4, 4), (4, 12)])
def test_weights_in_groups_are_within_half_a_step_of_their_group(bits, group):
    model = shifted(gpt(11, 8, 12, 2, 4).init(0))
    small = quantize_weights(model, bits, group)
    layer, weight = small.blocks["1"].up, model.blocks["1"].up.weight.data
    assert isinstance(layer, GroupedLinear) and layer.codes.data.nbytes == 12 * 48 * bits // 8
    grouped = weight.reshape(-1, group, 48)
    half = np.abs(grouped).max(axis=1, keepdims=True) / (2 ** (bits - 1) - 1) / 2
    assert (np.abs(layer.weight().reshape(grouped.shape) - grouped) <= half * (1 + 1e-5)).all()
    tokens = np.arange(16).reshape(2, 8) % 11
    with no_grad():
        expected, got = model(tokens).data, small(tokens).data
    assert 0 < np.abs(got - expected).max() < 0.4 * np.abs(expected).max()


def test_a_gradient_passes_through_quantized_weights_to_the_input():
    layer = quantize_weights(nn.Sequential(nn.Linear(4, 2)).init(0), 8, 4).blocks["0"]
    x = Tensor(np.ones((3, 4), np.float32), requires_grad=True)
    layer(x).sum().backward()
    np.testing.assert_allclose(x.grad, np.tile(layer.weight().sum(axis=1), (3, 1)))


def test_the_straight_through_gradient_is_one_inside_and_zero_where_clamped():
    grid = symmetric(np.array([1.0], np.float32), 4)
    x = Tensor(np.array([0.52, -0.99, 1.2, -3.0], np.float32), requires_grad=True)
    y = fake_quantize(x, grid)
    np.testing.assert_allclose(y.data, np.array([4, -7, 7, -7]) / 7, rtol=1e-6)
    y.backward(np.array([1, 2, 3, 4], np.float32))
    assert x.grad.tolist() == [1, 2, 0, 0]


def test_training_with_rounding_learns_and_becomes_the_int8_model():
    random = np.random.default_rng(3)
    targets = random.integers(0, 2, 40)
    inputs = (random.standard_normal((40, 8, 8)) + targets[:, None, None]).astype(np.float32)
    data = Dataset("light and dark", inputs, targets, 2)
    model = prepare(cnn(2, classes=2, size=8, hidden=6).init(1), [data.inputs])
    losses = []
    fit(model, Batches(data, 20), 40, 0.02, progress=lambda *numbers: losses.append(numbers[2]))
    assert losses[-1] < 0.6 * losses[0]
    small = convert(model)
    with no_grad():
        expected, got = model(data.inputs).data, small(data.inputs).data
    # The same numbers, summed in another order; a code may differ where a sum is halfway.
    assert (np.abs(got - expected) < 1e-4 * np.abs(expected).max()).mean() > 0.9
    np.testing.assert_allclose(got, expected, atol=0.05 * np.abs(expected).max())


def test_observe_sees_what_layers_are_given_and_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).init(0).train()
    model.blocks["1"].training = False
    x = np.array([[1, 2], [3, -4]], np.float32)
    seen = observe(model, ["0", "2"], [x, x[:1]])
    assert seen["0"].tolist() == [1, 2, 3, -4, 1, 2]
    hidden = np.maximum(model.blocks["0"](x).data, 0)
    np.testing.assert_allclose(seen["2"], np.concatenate([hidden, hidden[:1]]).ravel(), rtol=1e-6)
    assert "forward" not in vars(model.blocks["0"])
    assert [one.training for one in model.named_modules().values()] == [True, True, False, True]


X = [np.ones((1, 6), np.float32)]


def linear():
    return nn.Sequential(nn.Linear(6, 3)).init(0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: symmetric(np.ones(1), 9), "2 to 8 bits, not 9"),
        (lambda: quantize_int8(linear(), [], "range"), "at least one batch"),
        (lambda: quantize_int8(linear(), [np.ones((1, 6))], "best"), "no calibration 'best'"),
        (lambda: quantize_int8(nn.LayerNorm(2).init(0), [np.ones(2)]), "no linear layers"),
        (lambda: quantize_weights(linear(), 4, 4), "layer 0:.* 4 do not divide 6 inputs"),
        (lambda: quantize_weights(linear(), 4, 3), "3 outputs must be even"),
        (lambda: quantize_weights(linear(), 3, 3), "4 or 8 bits, not 3"),
        (lambda: quantize_weights(linear(), 8, 3, where=lambda path: False), "none|no linear"),
        (lambda: convert(linear()), "prepare"),
        (lambda: prepare(prepare(linear(), X), X), "prepared already"),
        (lambda: quantize_int8(linear(), [X[0][:0]]), "no data reached the layers"),
        (lambda: quantize_weights(diverged(), 8, 3), "0.weight has NaN or infinite"),
        (
            lambda: quantize_int8(diverged(), [np.ones((1, 6), np.float32)]),
            "0.weight has NaN or infinite",
        ),
        (
            lambda: quantize_int8(linear(), [np.full((1, 6), np.nan, np.float32)]),
            "input of layer '0' has NaN",
        ),
        (
            lambda: prepare(linear(), [np.full((1, 6), np.nan, np.float32)]),
            "input of layer '0' has NaN",
        ),
        (lambda: int8_linear()(Tensor(np.ones((1, 6)), requires_grad=True)), "no gradients"),
        (lambda: int8_linear()(np.ones((1, 5), np.float32)), "does not fit"),
    ],
)
def test_what_cannot_be_done_is_refused(call, words):
    with pytest.raises((ValueError, TypeError), match=words):
        call()


def diverged():
    model = linear()
    model.flat.data[3] = np.inf
    return model


def int8_linear():
    return quantize_int8(linear(), [np.ones((1, 6), np.float32)])
