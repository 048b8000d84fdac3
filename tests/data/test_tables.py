"""Own samples in CSV and NPZ files."""

from __future__ import annotations

import numpy as np
import pytest

from minidist.data import csv_file, npz_file

RANDOM = np.random.default_rng(1)
INPUTS, TARGETS = RANDOM.standard_normal((20, 3)) * 5 + 2, RANDOM.integers(0, 4, 20)
TARGETS[0] = 3


def lines(header="", at=3):
    rows = np.insert(INPUTS, at, TARGETS, axis=1)
    return header + "\n".join(",".join(f"{x!r}" for x in row.tolist()) for row in rows) + "\n"


@pytest.mark.parametrize(
    "header, at, target", [("", 3, None), ("a,b,c,d\n", 3, None), ('x,"target",y,z\n', 1, "target")]
)
def test_csv(tmp_path, header, at, target):
    (tmp_path / "t.csv").write_text(lines(header, at))
    training, test = csv_file(tmp_path / "t.csv", target)
    assert (len(training), len(test), training.classes, training.name) == (18, 2, 4, "t.csv")
    both = np.concatenate([training.inputs, test.inputs])
    assert sorted(both.tolist()) == sorted(INPUTS.tolist())
    pairs = {tuple(x): y for x, y in zip(INPUTS.tolist(), TARGETS.tolist(), strict=True)}
    for part in (training, test):
        assert [pairs[tuple(x)] for x in part.inputs.tolist()] == part.targets.tolist()
    prepared = training.batch(np.arange(18)).inputs
    np.testing.assert_allclose(prepared.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(prepared.std(0), 1, rtol=1e-6)


WRONG = {
    "a word": ("1,2,0\n1,x,1\n", "is not a table of numbers"),
    "a short row": ("1,2,0\n1,1\n", "is not a table of numbers"),
    "nan": ("1,2,0\n1,nan,1\n", "sample 1, column 1 is nan"),
    "half a class": ("1,2,0\n1,2,0.5\n", "target of sample 1 is 0.5"),
    "a negative class": ("1,2,0\n1,2,-1\n", "target of sample 1 is -1"),
    "one column": ("1\n2\n", "at least 2"),
}


@pytest.mark.parametrize("what", WRONG)
def test_csv_refuses(tmp_path, what):
    text, reason = WRONG[what]
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=reason):
        csv_file(tmp_path / "t.csv")
    with pytest.raises(ValueError, match="no column 'class'"):
        csv_file(tmp_path / "t.csv", "class")


def test_npz(tmp_path):
    pixels = RANDOM.integers(0, 256, (20, 4, 4), np.uint8)
    np.savez(tmp_path / "t.npz", inputs=pixels, targets=TARGETS)
    training, test = npz_file(tmp_path / "t.npz")
    assert (training.input_shape, len(test), training.classes) == ((4, 4), 2, 4)
    assert training.batch(np.arange(18)).inputs.max() <= 1
    np.savez(tmp_path / "bad.npz", inputs=pixels)
    with pytest.raises(ValueError, match="inputs and targets are needed"):
        npz_file(tmp_path / "bad.npz")
    np.savez(tmp_path / "objects.npz", inputs=np.array([{}], object), targets=TARGETS[:1])
    with pytest.raises(ValueError, match="is not an NPZ file of numbers"):
        npz_file(tmp_path / "objects.npz")
    np.savez(tmp_path / "uneven.npz", inputs=pixels[:3], targets=TARGETS)
    with pytest.raises(ValueError, match="one class for each"):
        npz_file(tmp_path / "uneven.npz")
