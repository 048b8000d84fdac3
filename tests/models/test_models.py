"""Models: their gradients, their cuts, and what sampling with a cache must equal."""

import numpy as np
import pytest

from minidist import nn
from minidist.engine import array
from minidist.engine.array import work
from minidist.engine.seeds import draws
from minidist.engine.tensor import Tensor, no_grad
from minidist.inspect.meter import measure_saved
from minidist.inspect.summaries import (
    blocks,
    layer_summary,
    layers,
    mfu,
    readable,
    summary,
    training_flops,
)
from minidist.models import cnn, gpt, mlp, sample
from minidist.models.gpt import pick


def tiny_gpt(**more):
    return gpt(11, context=12, width=16, layers=2, heads=2, **more)


def draw(*shape):
    return np.random.default_rng(0).standard_normal(shape)


def tokens(*shape):
    return np.random.default_rng(1).integers(0, 11, shape)


MODELS = {
    "mlp": (lambda: mlp((36, 8, 4)), draw(3, 6, 6), np.array([0, 3, 1])),
    "cnn": (lambda: cnn(2, classes=4, size=8, hidden=6), draw(3, 8, 8), np.array([0, 3, 1])),
    "gpt": (tiny_gpt, tokens(2, 7), tokens(2, 7)),
}


@pytest.mark.parametrize("name", MODELS)
def test_gradients_equal_numeric_slopes(name):
    make, x, y = MODELS[name]
    model, loss = make().init(0, dtype="float64"), nn.CrossEntropy()
    model.zero_grad()
    with array.defaults(dtype="float64"):
        loss(model(x), y).backward()
        rng, tiny = np.random.default_rng(2), 1e-5
        for parameter_name, parameter in model.named_parameters().items():
            direction = rng.standard_normal(parameter.declared)
            analytic = float((parameter.grad * direction).sum())
            values = []
            with no_grad():
                for sign in (1, -1):
                    parameter.data += sign * tiny * direction
                    values.append(loss(model(x), y).item())
                    parameter.data -= sign * tiny * direction
            numeric = (values[0] - values[1]) / (2 * tiny)
            print(f"{parameter_name}: analytic {analytic:.8f}, numeric {numeric:.8f}")
            assert analytic == pytest.approx(numeric, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("name", MODELS)
def test_every_cut_into_stages_is_the_whole(name):
    """A stage built alone has serial's parameters, and stages in a row compute the model."""
    make, x, _ = MODELS[name]
    model = make().init(3, dtype="float64")
    expected = model(x).data
    for cut in range(1, len(model)):
        stages = [part.init(3, dtype="float64") for part in (make()[:cut], make()[cut:])]
        for stage in stages:
            for key, values in stage.state().items():
                np.testing.assert_array_equal(values, model.state()[key], err_msg=key)
        np.testing.assert_array_equal(stages[1](stages[0](x)).data, expected)


def test_tied_embedding_is_one_parameter_on_both_ends():
    model = tiny_gpt()
    names = list(model.named_parameters())
    assert names.count("embedding.weight") == 1
    assert model.blocks["0"].weight is model.blocks["3"].weight
    first, last = model[:2].named_parameters(), model[2:].named_parameters()
    assert set(first) & set(last) == {"embedding.weight"}
    # The gradient of the whole is the sum of what the two ends find.
    x, loss = tokens(2, 7), nn.CrossEntropy()
    whole = tiny_gpt().init(0, dtype="float64")
    whole.zero_grad()
    loss(whole(x), x).backward()
    stages = [tiny_gpt()[:2].init(0, dtype="float64"), tiny_gpt()[2:].init(0, dtype="float64")]
    for stage in stages:
        stage.zero_grad()
    middle = stages[0](x)
    received = Tensor(middle.data, requires_grad=True)
    loss(stages[1](received), x).backward()
    middle.backward(received.grad)
    together = sum(stage.named_parameters()["embedding.weight"].grad for stage in stages)
    expected = whole.named_parameters()["embedding.weight"].grad
    np.testing.assert_allclose(together, expected, rtol=1e-12, atol=1e-15)


def test_gpt_does_not_see_the_future():
    model = tiny_gpt().init(0)
    x = tokens(1, 9)
    before = model(x).data
    x[0, 6:] = (x[0, 6:] + 1) % 11
    after = model(x).data
    np.testing.assert_array_equal(after[:, :6], before[:, :6])
    assert (after[:, 6:] != before[:, 6:]).any()


@pytest.mark.parametrize("count", [4, 30])  # 30 does not fit into the context of 12
def test_sampling_with_a_cache_equals_sampling_without(count):
    model = tiny_gpt().init(0, dtype="float64")
    model.flat.data *= 20  # far from uniform, so that choices are clear
    prompt = tokens(3)
    got = sample(model, prompt, count, temperature=0)
    text, start = list(prompt), 0
    with no_grad():
        for _ in range(count):
            if len(text) - start > 12:
                start = len(text) - 7  # the later half of the context, and the new token
            text.append(int(model(np.array([text[start:]])).data[0, -1].argmax()))
    print(got.tolist(), text[3:])
    assert got.tolist() == text[3:]


def test_sampling_is_by_seed_and_leaves_the_model_as_it_was():
    model = tiny_gpt(dropout=0.5).init(0)
    first = sample(model, [1], 8, seed=1)
    assert (sample(model, [1], 8, seed=1) == first).all()
    assert (sample(model, [1], 8, seed=2) != first).any()
    assert model.training
    assert sample(model, tokens(40), 3).shape == (3,)  # a prompt longer than the context


def test_pick_follows_temperature_and_top_k():
    logits = np.log(np.array([0.1, 0.6, 0.3]))
    assert [pick(logits, 1.0, None, u) for u in (0, 0.09, 0.11, 0.69, 0.71, 0.999)] == [
        *(0, 0, 1, 1, 2, 2)
    ]
    assert [pick(logits, 1.0, 2, u) for u in (0, 0.66, 0.67)] == [1, 1, 2]  # 0.6 and 0.3 remain
    assert pick(logits, 0, None, 0.99) == 1
    assert {pick(logits, 0.05, None, u) for u in (0.01, 0.5, 0.99)} == {1}


def test_dropout_in_gpt_is_keyed_and_off_in_eval():
    model = tiny_gpt(dropout=0.3).init(0)
    x = tokens(2, 7)
    with draws(0, 5):
        first, again = model(x).data, model(x).data
    with draws(0, 6):
        other = model(x).data
    assert (first == again).all() and (first != other).any()
    np.testing.assert_array_equal(model.eval()(x).data, tiny_gpt().init(0)(x).data)


@pytest.mark.parametrize("name", MODELS)
def test_summary_predicts_what_a_step_counts(name):
    make, x, y = MODELS[name]
    x = x.astype(np.float32) if x.dtype.kind == "f" else x
    model, loss = make().init(0), nn.CrossEntropy()
    rows = blocks(model, x.shape)
    assert sum(row.parameters for row in rows) == model.flat.size
    before = work.flops
    with measure_saved([model.flat.data_and_loss]) as meter:
        out = model(x)
        forward = work.flops - before
        saved = meter.bytes
    loss(out, y).backward()
    assert forward == sum(row.cost.flops for row in rows)
    assert work.flops - before == training_flops(model, x.shape)
    final = out.data.nbytes if rows[-1].cost.saves_output else 0
    read = x.nbytes if x.dtype.kind == "f" else 0  # the data's, but the first layer reads it again
    print(f"{name}: saved {saved}, predicted {sum(row.saved_bytes for row in rows)}")
    assert saved == sum(row.saved_bytes for row in rows) + final + read
    assert sum(row.saved_bytes for row in rows) == model.cost(x.shape).saved_bytes


@pytest.mark.parametrize("name", MODELS)
def test_layers_as_a_forward_finds_them(name):
    make, x, _ = MODELS[name]
    model = make().init(0, dtype="float64")
    whole, *inside = layers(model, x)
    predicted = blocks(model, x.shape, 8)
    assert whole.parameters == model.flat.size
    assert whole.cost.flops == sum(row.cost.flops for row in predicted)
    read = x.nbytes if x.dtype.kind == "f" else 0  # the first layer's input, which is the data's
    last = whole.cost.shape if predicted[-1].cost.saves_output else (0,)
    expected = sum(row.saved_bytes for row in predicted) + read + 8 * int(np.prod(last))
    assert whole.saved_bytes == expected
    outer = [row for row in inside if row.name.startswith("  ") and row.name[2] != " "]
    assert [row.name.strip() for row in outer] == list(model.blocks)
    assert [row.cost.shape for row in outer] == [row.cost.shape for row in predicted]
    assert [row.cost.flops for row in outer] == [row.cost.flops for row in predicted]
    assert sum(row.saved_bytes for row in outer) == whole.saved_bytes
    np.testing.assert_array_equal(model(x).data, make().init(0, dtype="float64")(x).data)


def test_layers_of_a_module_that_does_not_say_what_it_costs():
    class Own(nn.Module):
        def __init__(self):
            self.parts = [nn.Linear(4, 3), nn.Linear(3, 2)]

        def forward(self, x):
            for part in self.parts:
                x = part(x).relu()
            return x

    rows = layers(Own().init(0), np.ones((5, 4), np.float32))
    assert [row.name for row in rows] == ["", "  0", "  1"]
    assert [row.cost.flops for row in rows] == [180, 120, 60]
    assert [row.parameters for row in rows] == [23, 15, 8]


def test_a_layer_that_fails_leaves_the_model_as_it_was():
    model = mlp((4, 2)).init(0)
    with pytest.raises(ValueError, match="linear: input"):
        layers(model, np.ones((1, 5), np.float32))
    assert model(np.ones((1, 4), np.float32)).shape == (1, 2)
    assert "forward" not in vars(model)


def test_summary_table_prints():
    from rich.console import Console

    console = Console(width=140, record=True)
    console.print(summary(gpt(63), (8, 128)))
    text = console.export_text()
    assert "817,792" in text
    assert "Head(width=128, vocabulary=63, tied)" in text
    assert "8×128×63" in text
    console.print(layer_summary(tiny_gpt().init(0), tokens(2, 7)))
    assert "attention" in console.export_text()


def test_mfu_and_readable():
    assert mfu(6e9, 0.5, 1e11) == pytest.approx(0.12)
    with pytest.raises(ValueError, match="must be positive"):
        mfu(1, 0, 1)
    cases = {0: "0", 999: "999", 1234: "1.23 k", 5e6: "5 M", 2.5e15: "2.5e+03 T"}
    assert {number: readable(number) for number in cases} == cases
    assert readable(1536, "B") == "1.54 kB"


def test_models_refuse_what_they_cannot_do():
    with pytest.raises(ValueError, match="multiple of 4"):
        cnn(size=30)
    with pytest.raises(ValueError, match="13 tokens do not fit into a context of 12"):
        tiny_gpt().init(0)(tokens(1, 13))
    with pytest.raises(TypeError, match=r"dataset\.encode"):
        sample(tiny_gpt().init(0), "to be", 3)
    with pytest.raises(ValueError, match="at least one token"):
        sample(tiny_gpt().init(0), [], 3)
    with pytest.raises(ValueError, match="temperature -1"):
        sample(tiny_gpt().init(0), [1], 3, temperature=-1)
