"""Chains of element-wise steps, compiled by numba where it is installed and asked for."""

import itertools
import sys

import numpy as np
import pytest

from minidist import Tensor, launch, ops
from minidist.comm.errors import Disagreement
from minidist.data import Batches, Dataset
from minidist.engine import fusion
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import SGD, Adam
from minidist.parallel import DataParallel, Serial, guards


@pytest.fixture
def choose(monkeypatch, tmp_path):
    """Choose what compiles in this test, with an empty folder for what is kept."""
    monkeypatch.setenv("HOME", str(tmp_path))

    def to(name):
        monkeypatch.setenv("MINIDIST_FUSE", name)
        fusion.compiler.cache_clear()

    yield to
    fusion.compiler.cache_clear()


def trained(method, optimizer, ranks=1):
    def run(comm):
        random = np.random.default_rng(0)
        x, y = random.standard_normal((24, 6), np.float32), random.integers(0, 3, 24)
        batches = Batches(Dataset("drawn", x, y, 3), 8)
        made = method(mlp((6, 9, 3)), CrossEntropy(), optimizer(), comm)
        losses = [made.step(batches[step]) for step in range(4)]
        return losses, made.parameters()

    return launch(run, ranks)[-1]


def equal(one, other):
    assert one[0] == other[0]
    for name, values in one[1].items():
        np.testing.assert_array_equal(values, other[1][name])


@pytest.mark.slow  # it compiles
def test_numba_trains_as_numpy_does(choose):
    pytest.importorskip("numba")
    rules = (Adam, lambda: SGD(0.1, momentum=0.9))
    choose("")
    expected = [trained(Serial, rule) for rule in rules]
    choose("numba")
    for rule, one in zip(rules, expected, strict=True):
        equal(trained(Serial, rule), one)
        first, second = trained(DataParallel, rule, 2), trained(DataParallel, rule, 2)
        equal(first, second)  # the same bits again
        np.testing.assert_allclose(first[0], one[0], rtol=1e-6)


@pytest.mark.slow
def test_arrays_that_have_no_loop_run_as_written(choose, tmp_path):
    pytest.importorskip("numba")
    choose("numba")

    @fusion.fused
    def double(xp, out, x):
        xp.add(x, x, out=out)

    for x in (
        np.arange(6.0).reshape(2, 3),
        np.arange(6.0).reshape(2, 3).T,  # not contiguous
        np.arange(6),
        np.arange(6, dtype=np.float16),
        np.array(2.0),
        np.zeros((0, 3)),
    ):
        out = np.empty(x.shape, x.dtype)
        double(np, out, x)
        np.testing.assert_array_equal(out, x + x)
    (kept,) = tmp_path.rglob("*.nbc")  # one was compiled, and is kept
    assert kept.name.startswith("double_float64")
    bits = []
    for name in ("", "numba"):  # a chain with a function between that has no loop
        choose(name)
        x = Tensor(np.linspace(-4, 4, 99, dtype=np.float32), requires_grad=True)
        y = ops.gelu(x)
        y.sum().backward()
        bits.append((y.data, x.grad))
    np.testing.assert_array_equal(*bits)
    choose("numba")
    with pytest.raises(ValueError, match="broadcast"):  # shapes that differ are NumPy's to judge
        double(np, np.empty(2), np.ones(3))
    wide = np.empty(3)
    double(np, wide, np.ones(3, np.float32))  # dtypes that differ, too
    assert wide.tolist() == [2, 2, 2]


def test_another_compiler_or_a_missing_one_is_an_error(choose, monkeypatch):
    choose("fast")
    with pytest.raises(ValueError, match="MINIDIST_FUSE=fast"):
        fusion.compiler()
    choose("numba")
    monkeypatch.setattr(fusion, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"minidist\[fast\]"):
        SGD(0.1).step(np.zeros(3), np.ones(3))


def test_ranks_that_choose_differently_refuse_to_start(monkeypatch):
    chosen = itertools.cycle(["", "numba"])  # each rank asks once, and shows it
    by_rank = {}

    def build(comm):
        monkeypatch.setattr(guards, "compiler", lambda: by_rank.setdefault(comm.rank, next(chosen)))
        DataParallel(mlp((4, 2)), CrossEntropy(), SGD(0.1), comm)

    with pytest.raises(Disagreement, match="loops by numba"):
        launch(build, 2)


def test_a_folder_that_cannot_be_written_is_done_without(choose, monkeypatch, tmp_path):
    (tmp_path / ".cache").write_text("a file, where a folder should be")
    module = fusion.load("loop", "def loop(x):\n    return x + 1\n")
    assert module.loop(1) == 2 and module.__spec__ is None


def test_a_kept_file_that_was_changed_is_written_again(choose, tmp_path):
    text = "def loop(x):\n    return x + 1\n"
    fusion.load("loop", text)
    (path,) = tmp_path.rglob("*.py")
    path.write_text("def loop(x):\n    return x + 2\n")
    assert fusion.load("loop", text).loop(1) == 2
    assert path.read_text() == text
    del sys.modules[f"minidist_loop_{path.stem}"]
