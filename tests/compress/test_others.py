"""Low rank, distillation, files, and the comparison of all."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from minidist import Tensor, cli, nn, no_grad
from minidist.compress import (
    COMPRESS_TASKS,
    RECIPES,
    Distillation,
    FileError,
    choose,
    compress,
    experiment,
    factor,
    keep_largest,
    load,
    prepare,
    quantize_int8,
    quantize_weights,
    save,
    shrink,
    sizes,
    soft_cross_entropy,
)
from minidist.compress.low_rank import rank_for, truncated
from minidist.compress.measuring import seconds_a_sample
from minidist.compress.pruning import apply_masks, magnitude_masks
from minidist.engine import work
from minidist.inspect import measure_saved
from minidist.models import gpt, mlp
from tests.compress.test_pruning import images, shifted, small_cnn

random = np.random.default_rng(0)


def test_the_error_of_low_rank_is_the_rest_of_the_singular_values():
    matrix = random.standard_normal((9, 6))
    sigma = np.linalg.svd(matrix, compute_uv=False)
    for rank in range(1, 7):
        A, B = truncated(matrix, rank)
        assert A.shape == (9, rank) and B.shape == (rank, 6)
        np.testing.assert_allclose(((A @ B - matrix) ** 2).sum(), (sigma[rank:] ** 2).sum(),
                                   atol=1e-12)  # fmt: skip
    shares = np.cumsum(sigma**2) / (sigma**2).sum()
    assert rank_for(matrix, shares[2] - 1e-9) == 3 and rank_for(matrix, shares[2] + 1e-9) == 4
    assert rank_for(matrix, 1.0) == 6


def test_a_factored_model_computes_the_same_if_the_rank_is_whole():
    """Layers of rank 3, made so before: then rank 3 loses nothing."""
    model = shifted(nn.Sequential(
        nn.Conv2d(3, 20, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(320, 12)
    ).init(0))  # fmt: skip
    for name, shape in (("0", (20, 27)), ("3", (320, 12))):
        weight = model.blocks[name].weight
        low = random.standard_normal((shape[0], 3)) @ random.standard_normal((3, shape[1])) / 20
        weight.data[...] = low.reshape(weight.declared)
    x = random.standard_normal((2, 3, 8, 8)).astype(np.float32)
    small = factor(model, rank=3)
    with no_grad():
        np.testing.assert_allclose(small(x).data, model(x).data, atol=1e-5)
        before = work.flops
        small(x)
    assert work.flops - before == small.cost(x.shape).flops < 0.5 * model.cost(x.shape).flops
    assert small.flat.size == 3 * 27 + 3 * 20 + 20 + 3 * (320 + 12) + 12
    assert factor(model, energy=0.999).flat.size == small.flat.size


def test_soft_targets_have_the_gradient_of_the_formula():
    z, taught = random.standard_normal((2, 5, 4))
    T, count = 3.0, 7

    def softmax(z):
        e = np.exp(z)
        return e / e.sum(axis=1, keepdims=True)

    logits = Tensor(z, requires_grad=True)
    loss = soft_cross_entropy(logits, Tensor(taught), T, count)
    loss.backward()
    p, q = softmax(taught / T), softmax(z / T)
    np.testing.assert_allclose(loss.item(), -(T**2) * (p * np.log(q)).sum() / count, rtol=1e-6)
    np.testing.assert_allclose(logits.grad, T * (q - p) / count, atol=1e-7)


def test_distillation_mixes_both_losses_and_leaves_the_teacher_alone():
    student, teacher = mlp((64, 5, 10)).init(0), mlp((64, 10)).init(1)
    batch = images(6).batch(np.arange(6))
    hard = Distillation(teacher, 2.0, 0.0)(student, batch).item()
    soft = Distillation(teacher, 2.0, 1.0)(student, batch).item()
    mixed = Distillation(teacher, 2.0, 0.3)(student, batch)
    assert abs(hard - nn.CrossEntropy()(student(batch.inputs), batch.targets).item()) < 1e-6
    assert abs(mixed.item() - (0.7 * hard + 0.3 * soft)) < 1e-5
    teacher.flat.grad.fill(0)
    mixed.backward()
    assert not teacher.flat.grad.any() and student.flat.grad.any()


def test_a_teacher_teaches_without_dropout_and_keeps_its_mode():
    student = mlp((64, 5, 10)).init(0)
    teacher = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10)).init(1)
    batch = images(6).batch(np.arange(6))
    loss = Distillation(teacher, 2.0, 1.0)
    teacher.train()
    taught = loss(student, batch).item()
    assert teacher.training and teacher.blocks["1"].training
    seconds_a_sample([teacher], batch.inputs, 1)
    assert teacher.training and teacher.blocks["1"].training
    teacher.eval()
    assert loss(student, batch).item() == taught


def masked(model):
    apply_masks(model, magnitude_masks(model, 0.8))
    return model


X = images(12).inputs
KINDS = {
    "plain": lambda m: m,
    "masked": masked,
    "shrunk": lambda m: shrink(m, keep_largest(m, 0.5)),
    "int8": lambda m: quantize_int8(m, [X], per_channel=False),
    "aware": lambda m: prepare(m, [X]),
    "groups": lambda m: quantize_weights(m, 4, 2, where=lambda path: path == "8"),
    "low rank": lambda m: factor(m, rank=2),
    "all of it": lambda m: quantize_int8(factor(shrink(m, keep_largest(m, 0.5)), rank=2), [X]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_saved_and_loaded_bit_for_bit(kind, tmp_path):
    model = KINDS[kind](shifted(small_cnn().init(1))).eval()
    path = save(tmp_path / "folder" / "m.safetensors", model)
    again = load(path, small_cnn()).eval()
    old, new = model.state(), again.state()
    assert list(old) == list(new)
    for name, values in old.items():
        assert values.dtype == new[name].dtype and values.tobytes() == new[name].tobytes()
    with no_grad():
        assert model(X).data.tobytes() == again(X).data.tobytes()
    assert sizes(model, X.shape[1:]).disk == path.stat().st_size
    assert save(tmp_path / "again", again).read_bytes() == path.read_bytes()


def test_heads_of_a_shrunk_gpt_are_saved(tmp_path):
    model = shifted(gpt(11, 8, 12, 2, 4).init(0, dtype="float64"))
    small = shrink(model, keep_largest(model, {"1.attention": 3, "2.up": 5}))
    again = load(save(tmp_path / "m", small), gpt(11, 8, 12, 2, 4))
    tokens = np.arange(8)[None] % 11
    assert again(tokens).data.tobytes() == small(tokens).data.tobytes()
    assert again.blocks["1"].attention.heads == 3 and again.flat.data.dtype == np.float64


def test_zeros_take_a_bit_each_and_negative_zero_is_kept(tmp_path):
    model = masked(nn.Linear(100, 100).init(0))
    model.weight.data[0, 0] = -0.0
    path = save(tmp_path / "m", model)
    assert path.stat().st_size < 100 * 100 / 8 + 2001 * 4 + 400 + 600  # 600: the header
    again = load(path, nn.Linear(100, 100)).weight.data
    assert again.tobytes() == model.weight.data.tobytes()
    assert sizes(model, (100,)).memory == model.flat.data.nbytes


def test_wrong_files_are_refused(tmp_path):
    path = save(tmp_path / "m", quantize_int8(small_cnn().init(0), [X]))
    with pytest.raises(FileError, match="does not fit this model"):
        load(path, mlp((4, 3)))
    whole = path.read_bytes()
    for name, damaged in {"cut": whole[:-9], "empty": b"", "text": b"pickle" * 9}.items():
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(FileError, match="is not a whole safetensors file"):
            load(tmp_path / name, small_cnn())
    (tmp_path / "evil").write_bytes(whole.replace(b"Int8Conv2d", b"ExecConv2d"))
    with pytest.raises(FileError, match="'ExecConv2d', which is not one of"):
        load(tmp_path / "evil", small_cnn())
    save_file({"a": np.ones(2)}, tmp_path / "foreign")
    with pytest.raises(FileError, match="did not write it"):
        load(tmp_path / "foreign", small_cnn())
    with pytest.raises(FileError, match="missing"):
        load(tmp_path / "missing", small_cnn())


def test_parameters_are_counted_by_what_codes_stand_for():
    model = small_cnn().init(0)
    plain = sizes(model, (8, 8))
    assert plain.parameters == model.flat.size
    packed = sizes(quantize_weights(model, 4, 2, where=lambda path: path == "8"), (8, 8))
    int8 = sizes(quantize_int8(model, [X]), (8, 8))
    for small in (packed, int8):  # a few codes are 0
        assert 0.8 * plain.parameters < small.parameters <= plain.parameters
        assert small.flops == plain.flops and small.memory < plain.memory
    assert sizes(masked(model), (8, 8)).parameters < 0.25 * plain.parameters


def test_the_saved_bytes_of_new_layers_are_predicted():
    for kind in ("aware", "groups", "low rank"):
        model = KINDS[kind](small_cnn().init(1))
        with measure_saved([model.flat.data_and_loss]) as meter:
            x = Tensor(X)
            out = model(x)
        assert out.node is not None
        predicted = model.cost(X.shape)
        extra = x.data.nbytes if predicted.saves_input else 0
        if kind == "aware":  # the model's own input has no gradient, so no mask of what was inside
            extra -= x.size  # is kept
        assert meter.bytes == predicted.saved_bytes + extra, kind


def row(name, disk, memory, seconds, lost):
    return {"name": name, "disk": disk, "memory": memory, "seconds": seconds, "lost": lost}


def test_the_chooser_takes_the_best_that_does_not_lose_too_much():
    rows = [row("the original", 100, 100, 1.0, 0.0), row("a", 25, 25, 1.5, 0.2),
            row("b", 10, 100, 0.95, 2.0), row("c", 50, 50, 0.5, 0.9)]  # fmt: skip
    report = {"rows": rows}
    for goal, lose, expected in (
        ("file", 1, "a"), ("file", 2, "b"), ("memory", 5, "a"), ("speed", 1, "c"),
        ("speed", 0.5, "the original"), ("file", 0, "the original"),
    ):  # fmt: skip
        assert choose(report, goal, lose)["name"] == expected, (goal, lose)
    assert choose({"rows": [rows[0], rows[2]]}, "speed", 5)["name"] == "the original"  # noise
    with pytest.raises(ValueError, match="unknown goal 'beauty'"):
        choose(report, "beauty", 1)
    with pytest.raises(ValueError, match="at least 0"):
        choose(report, "file", -1)


@pytest.fixture
def tiny(monkeypatch):
    task = replace(
        COMPRESS_TASKS["cnn"],
        model=small_cnn,
        small=lambda: mlp((64, 5, 10)),
        data=lambda: (images(40), images(30)),
        batch=10,
        augment=None,
        timed=5,
    )
    # Groups of 32, and low rank, need larger layers.
    recipes = [r for r in RECIPES if "groups" not in r.name and "rank" not in r.name]
    monkeypatch.setitem(COMPRESS_TASKS, "cnn", task)
    monkeypatch.setattr(experiment, "RECIPES", recipes)
    return recipes


def test_every_recipe_is_trained_measured_saved_and_drawn(tiny, tmp_path, capsys):
    folder = tmp_path / "out"
    arguments = ["compress", "--steps", "3", "--train-steps", "4", "--out", str(folder)]
    assert cli.main([*arguments, "--goal", "file", "--lose", "100"]) == 0
    printed = capsys.readouterr().out
    report = json.loads((folder / "compress.json").read_text())
    assert [r["name"] for r in report["rows"]] == ["the original", *[r.name for r in tiny]]
    for measured, recipe in zip(report["rows"][1:], tiny, strict=True):
        assert (measured["before"] is not None) == (recipe.tune is not None)
        assert measured["seconds"] > 0 and measured["disk"] > 0
    assert (folder / "compress.png").stat().st_size > 20_000
    best = min(report["rows"][1:], key=lambda row: row["disk"])["name"]
    assert f"file, losing at most 100 points: {best}" in printed
    assert "original" in printed and "for file: " in printed
    half = next(r for r in report["rows"] if r["name"].startswith("half of channels"))
    name = "half_of_channels_units_heads.safetensors"
    assert (folder / name).stat().st_size == half["disk"]
    again = load(folder / name, small_cnn())
    assert COMPRESS_TASKS["cnn"].judge(again) == half["after"]
    # Going on from the saved original, a part of the recipes.
    trained = str(folder / "the_original.safetensors")
    assert cli.main([*arguments, "--trained", trained, "--recipes", "int8 per"]) == 0
    second = json.loads((folder / "compress.json").read_text())
    assert second["rows"][0]["after"] == report["rows"][0]["after"]
    assert len(second["rows"]) == 4


def test_gradual_pruning_ends_at_its_share_in_the_comparison(tiny):
    report, models = compress("cnn", "nine tenths", train_steps=2, steps=5)
    weights = [p.data for n, p in models[report["rows"][1]["name"]].named_parameters().items()
               if n.endswith("weight")]  # fmt: skip
    zeros = sum(int((w == 0).sum()) for w in weights)
    assert zeros == round(0.9 * sum(w.size for w in weights))


def test_fine_tuning_changes_the_model_that_is_compared(tiny):
    report, models = compress("cnn", "half of channels", train_steps=2, steps=2)
    original, small = models["the original"], models[report["rows"][1]["name"]]
    at_once = shrink(original, keep_largest(original, 0.5))
    assert (small.flat.data != at_once.flat.data).any()
    assert report["rows"][1]["before"] == COMPRESS_TASKS["cnn"].judge(at_once)
    assert report["rows"][1]["after"] == COMPRESS_TASKS["cnn"].judge(small)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: factor(small_cnn().init(0)), "either rank or energy"),
        (lambda: factor(small_cnn().init(0), rank=0), "at least 1, not 0"),
        (lambda: factor(small_cnn().init(0), rank=1.5), "a whole number, at least 1, not 1.5"),
        (lambda: factor(diverged(), rank=1), "weight has NaN or infinite"),
        (lambda: factor(small_cnn().init(0), energy=1.5), r"\(0, 1\], not 1.5"),
        (lambda: factor(small_cnn().init(0), rank=999), "no selected layer gets smaller"),
        (lambda: Distillation(mlp((3, 2)), np.nan), "above 0 and finite, not nan"),
        (lambda: Distillation(mlp((3, 2)), weight=2), r"\[0, 1\], not 2"),
        (lambda: compress("resnet"), "unknown task 'resnet'"),
        (lambda: compress("cnn", "int7"), "no recipe has 'int7'"),
        (lambda: compress("cnn", steps=0), "at least one step"),
        (
            lambda: soft_cross_entropy(Tensor(np.ones((2, 3))), Tensor(np.ones((2, 4))), 1, 1),
            "the same classes",
        ),
        (
            lambda: soft_cross_entropy(Tensor(np.ones((2, 3))), Tensor(np.ones((2, 3))), 0, 1),
            "above 0 and finite, not 0",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def diverged():
    model = small_cnn().init(0)
    model.flat.data.fill(np.nan)
    return model
