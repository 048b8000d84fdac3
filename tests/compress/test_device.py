"""On a device (a stand-in with a GPU's manners) smaller models compute what they do on the host."""

from __future__ import annotations

import numpy as np
import pytest
import strict

from minidist import no_grad
from minidist.compress import (
    Distillation,
    GradualPruning,
    convert,
    factor,
    fit,
    keep_largest,
    load,
    prepare,
    quantize_int8,
    quantize_weights,
    save,
    shrink,
    sizes,
)
from minidist.data import Batches
from minidist.engine import array as arrays
from minidist.engine.array import defaults, to_device, to_host
from minidist.models import mlp
from tests.compress.test_pruning import images, shifted, small_cnn

X = images(8).inputs
WAYS = {
    "shrunk": lambda m: shrink(m, keep_largest(m, 0.5)),
    "int8": lambda m: quantize_int8(m, [to_device(X)]),
    "trained int8": lambda m: convert(tuned(prepare(m, [to_device(X)]))),
    "groups": lambda m: quantize_weights(m, 4, 2, where=lambda path: path == "8"),
    "low rank": lambda m: factor(m, rank=2),
    "pruned": lambda m: tuned(m, after_step=GradualPruning(0.5, 2, 1).after_step),
    "distilled": lambda m: tuned(m, loss=Distillation(mlp((64, 10)).init(3))),
}


def tuned(model, **more):
    return fit(model, Batches(images(8), 4), 3, 0.001, **more)


@pytest.mark.parametrize("way", WAYS)
def test_on_a_device_as_on_the_host(way, monkeypatch, tmp_path):
    monkeypatch.setitem(arrays.DEVICES, "strict", lambda: strict)
    found = []
    for device in ("cpu", "strict"):
        with defaults(device=device):
            model = small_cnn().init(1)
            model.load(shifted(small_cnn().init(1, device="cpu")).state())
            model = WAYS[way](model).eval()
            sizes(model, (8, 8))
            again = load(save(tmp_path / "m", model), small_cnn()).eval()
            with no_grad():
                found.append([to_host(m(to_device(X)).data) for m in (model, again)])
    for part in found[1]:
        np.testing.assert_allclose(part, found[0][0], atol=2e-4)
