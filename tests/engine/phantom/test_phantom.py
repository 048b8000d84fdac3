"""Arrays without numbers have the shapes, dtypes and memory of NumPy's, and the kernels of a GPU.

Every op of ``tests/cases.py`` runs on them as it is written. What it launches is counted against
``tests/strict.py``, which counts what a GPU would launch.
"""

import cases
import numpy as np
import pytest
import strict

from minidist import ops
from minidist.engine import array as arrays
from minidist.engine import phantom
from minidist.engine.array import read, work
from minidist.engine.phantom import NoNumbers, views
from minidist.engine.products import product
from minidist.engine.tensor import Tensor
from minidist.nn import Linear

NAMES = [name for name in cases.CASES if name != "mask"]  # a mask's numbers give a shape


@pytest.fixture(autouse=True)
def strict_device(monkeypatch):
    monkeypatch.setitem(arrays.DEVICES, "strict", lambda: strict)


def zeros(*shape, dtype="float32"):
    return phantom.zeros(shape, dtype)


@pytest.mark.parametrize("name", NAMES)
def test_an_op_gives_shapes_and_dtypes_of_the_host(name):
    flops = []
    before = work.flops
    for device in ("phantom", "cpu"):
        arrays_ = cases.run(name, device)
        flops.append(work.flops - before)
        before = work.flops
        described = [(array.shape, array.dtype) for array in arrays_]
        if device == "phantom":
            got = described
            assert all(arrays.module_of(array) is phantom for array in arrays_)
    assert got == described
    assert flops[0] == flops[1]


@pytest.mark.parametrize("name", NAMES)
def test_an_op_launches_what_a_gpu_launches(name):
    for device in ("strict", "phantom"):  # fused chains are looked at first
        cases.run(name, device, "float32")
    strict.counts.clear()
    cases.run(name, "strict", "float32")
    # The addresses of a stack's matrices are written once, and kept: see products.py.
    expected = strict.counts["kernels"] - strict.counts["pointers"]
    before = work.kernels
    cases.run(name, "phantom", "float32")
    assert work.kernels - before == expected


@pytest.mark.parametrize(
    ("change", "nbytes"),
    [
        (lambda x, y: x + y, 3 * 400),
        (lambda x, y: x.__iadd__(y), 3 * 400),
        (lambda x, y: x * 2, 2 * 400),
        (lambda x, y: x > y, 2 * 400 + 100),
        (lambda x, y: x.__setitem__(slice(0, 10), y[:10]), 2 * 40),
        (lambda x, y: x.sum(), 400 + 4),
        (lambda x, y: x.copy(), 2 * 400),
        (lambda x, y: x[2:].reshape(2, 49), 0),
        (lambda x, y: x.reshape(4, 25).T.reshape(-1), 2 * 400),
        (lambda x, y: phantom.where(x > y, x, y), 900 + 100 + 3 * 400),
    ],
)
def test_a_step_moves_what_it_reads_and_writes(change, nbytes):
    x, y = zeros(100), zeros(100)
    before = work.moved
    change(x, y)
    assert work.moved - before == nbytes


def test_a_fused_chain_and_a_kernel_move_each_array_once():
    """GELU reads x, writes y and its slope; the backward of layer norm reads two, writes one."""
    x = Tensor(zeros(64, 32), requires_grad=True)
    before = work.counts()
    ops.gelu(x)
    assert (work.kernels - before[1], work.moved - before[2]) == (1, 3 * x.data.nbytes)

    weight = Tensor(zeros(32))
    y, grad = ops.layer_norm(x, weight, None), zeros(64, 32)
    before = work.counts()
    y.backward(grad)
    assert work.kernels - before[1] == 2  # and the copy into x.grad
    assert work.moved - before[2] == 3 * x.data.nbytes + 128 + 256 + 2 * x.data.nbytes


def test_a_product_moves_its_arrays_and_waits_for_the_slower_of_memory_and_arithmetic():
    a, b, out = zeros(50, 40), zeros(40, 30), zeros(50, 30)
    flops, nbytes = 2 * 50 * 40 * 30, 4 * (2000 + 1200 + 1500)
    work.launch, work.per_byte, work.per_flop = 1e-3, 1e-9, 1e-9
    try:
        before = work.beyond
        product(phantom, a, b, out)
        assert work.beyond - before == pytest.approx(1e-3)  # arithmetic takes longer
        work.per_byte = 1e-8
        before = work.beyond
        product(phantom, a, b, out, scale=0.5, add=True)
        waits = (nbytes + 6000) * 1e-8 - flops * 1e-9
        assert work.beyond - before == pytest.approx(1e-3 + waits)
    finally:
        work.launch = work.per_byte = work.per_flop = 0.0


def ask(how, x):
    return how(x)


@pytest.mark.parametrize(
    "how", [bool, float, int, np.asarray, lambda x: [x.item()], lambda x: [x.tolist()]]
)
def test_whoever_asks_for_a_value_is_told_who_and_what(how):
    with pytest.raises(NoNumbers, match=r"test_phantom.py:\d+.*\(3,\) of float32.*read"):
        ask(how, zeros(3))
    with pytest.raises(NoNumbers, match="mask"):
        zeros(3)[zeros(3) > 0]


def test_read_answers_by_the_rule_and_only_for_shapes():
    assert np.isnan(read(zeros(2), np.nan)).all()
    assert read(np.array([1.0, 2.0]), np.nan).tolist() == [1.0, 2.0]


def test_nothing_is_drawn_and_nothing_is_stored(monkeypatch):
    """A layer of 4 TB, whose initial values would take hours."""
    model = Linear(1_000_000, 1_000_000)
    monkeypatch.setattr(np.random, "Philox", None)
    model.init(0, device="phantom")
    assert model.flat.data.nbytes == 4 * (10**12 + 10**6)


def test_views_are_views_and_overlaps_are_found():
    whole = zeros(24)
    first, second = whole[:12], whole[12:].reshape(3, 4).T
    assert first.base is whole
    assert second.base is whole
    assert second.strides == (4, 16)
    assert not second.flags.c_contiguous
    assert not phantom.may_share_memory(first, second)
    assert phantom.may_share_memory(second, whole[20:])
    assert not phantom.may_share_memory(zeros(3), zeros(3))


def layouts():
    random = np.random.default_rng(3)
    for _ in range(60):
        shape = tuple(random.integers(1, 4, random.integers(1, 5)))
        order = random.permutation(len(shape))
        yield shape, order, random.integers(1, 3, len(shape))


@pytest.mark.parametrize(("shape", "order", "steps"), list(layouts()))
def test_results_lie_in_memory_as_numpys_do(shape, order, steps):
    """Transposed and sliced operands, with broadcasting: order of axes, views and copies."""

    def results(xp):
        x = xp.zeros(tuple(3 * n for n in shape), "float32").transpose(*order)
        x = x[tuple(slice(None, None, step) for step in steps)]
        y = xp.zeros(x.shape, "float64")
        row = xp.zeros(x.shape[-1:], "float32")
        new = x + y, x * row, row - x, -x, x > 1, x.astype("float16"), xp.where(x, y, x)
        views = x.reshape(-1), x.reshape((*x.shape[:1], -1)), x.swapaxes(0, -1)[..., ::2]
        for result in (*new, xp.empty_like(x), *views):
            yield result, xp.may_share_memory(result, x)

    for (got, seen), (expected, really) in zip(results(phantom), results(np), strict=True):
        assert got.shape == expected.shape
        assert got.dtype == expected.dtype
        long = [n > 1 for n in got.shape]  # the stride of an axis of length 1 says nothing
        strides = [
            [step for step, use in zip(array.strides, long, strict=True) if use]
            for array in (got, expected)
        ]
        assert strides[0] == strides[1]
        assert seen == really


def test_a_tensor_without_numbers_can_be_printed():
    assert repr(Tensor(zeros(2, 3))) == "Tensor(phantom float32 (2, 3), dtype=float32)"


def test_shapes_that_do_not_fit_are_errors_as_on_the_host():
    for wrong in (
        lambda: zeros(3) + zeros(4),
        lambda: zeros(3).reshape(2, 2),
        lambda: zeros(2, 3) @ zeros(2, 3),
        lambda: zeros(3).__setitem__(slice(0, 2), zeros(3)),
        lambda: phantom.add(zeros(3), zeros(3), out=zeros(2)),
    ):
        with pytest.raises(ValueError, match=r"shape|out"):
            wrong()
    with pytest.raises(TypeError, match="NumPy array"):
        zeros(3) + np.zeros(3)
    with pytest.raises(AttributeError, match="no function fft"):
        phantom.fft(zeros(3))


def test_an_index_of_numbers_reads_no_memory():
    """The stand-in has one element: NumPy would read far behind it, and crash now and then."""
    views.view.cache_clear()
    whole = views.stand_in((1 << 40,), None, np.dtype("float64"))
    assert views.VIEWS["index"](whole, (-1,)).shape == ()  # a view: a scalar would be a copy
    assert np.shares_memory(views.VIEWS["index"](whole, (0,)), whole[:1])
    assert views.view((1 << 40,), None, np.dtype("float64"), "index", (-1,))[0] == ()
