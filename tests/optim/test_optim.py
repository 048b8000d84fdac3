"""Optimizers equal their formulas, and parts stepped apart equal the whole."""

from itertools import pairwise

import numpy as np
import pytest

from minidist import nn, optim
from minidist.engine.seeds import generator
from minidist.optim import optimizer as optimizer_module

STEPS = 5
SHAPES = {"0.weight": (7, 5), "0.bias": (5,), "norm.gain": (5,), "1.weight": (5, 3), "1.bias": (3,)}


def make_slices():
    slices, start = {}, 0
    for name, shape in SHAPES.items():
        size = int(np.prod(shape))
        slices[name] = slice(start, start + size)
        start += size
    return slices, start


SLICES, SIZE = make_slices()


def start_and_grads(dtype=np.float64):
    draw = generator(0, "test_optim")
    data = draw.standard_normal(SIZE).astype(dtype)
    return data, [draw.standard_normal(SIZE).astype(dtype) for _ in range(STEPS)]


# Each rule again, as its paper writes it: one array, no pieces, no tricks.


def gradient_descent(w, grads, lr=0.1):
    for g in grads:
        w = w - lr * g
    return w


def momentum(w, grads, lr=0.1, mu=0.9, decay=0.0):
    v = 0
    for g in grads:
        v = mu * v + g + decay * w
        w = w - lr * v
    return w


def nesterov(w, grads, lr=0.1, mu=0.9):
    v = 0
    for g in grads:
        v = mu * v + g
        w = w - lr * (g + mu * v)
    return w


def adagrad(w, grads, lr=0.1, eps=1e-10):
    s = 0
    for g in grads:
        s = s + g**2
        w = w - lr * g / (np.sqrt(s) + eps)
    return w


def rmsprop(w, grads, lr=0.1, rho=0.99, eps=1e-8):
    s = 0
    for g in grads:
        s = rho * s + (1 - rho) * g**2
        w = w - lr * g / (np.sqrt(s) + eps)
    return w


def adam(w, grads, lr=0.1, b1=0.9, b2=0.999, eps=1e-8, decay=0.0):
    m = v = 0
    for t, g in enumerate(grads, start=1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        w = w - lr * decay * w
        w = w - lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
    return w


def lars(w, grads, lr=0.1, mu=0.9, decay=0.01, trust=1e-3):
    w, v = w.copy(), np.zeros_like(w)
    for g in grads:
        for name, part in SLICES.items():
            rate, wd = lr, 0.0
            if not name.endswith("bias"):
                norm = np.linalg.norm(w[part])
                rate, wd = lr * trust * norm / (np.linalg.norm(g[part]) + decay * norm), decay
            v[part] = mu * v[part] + rate * (g[part] + wd * w[part])
            w[part] = w[part] - v[part]
    return w


def lamb(w, grads, lr=0.1, b1=0.9, b2=0.999, eps=1e-6, decay=0.01):
    w, m, v = w.copy(), np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(grads, start=1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        r = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
        for name, part in SLICES.items():
            u, ratio = r[part], 1.0
            if not name.endswith("bias"):
                u = u + decay * w[part]
                ratio = np.linalg.norm(w[part]) / np.linalg.norm(u)
            w[part] = w[part] - lr * ratio * u
    return w


ELEMENTWISE = {
    "GradientDescent": (lambda: optim.GradientDescent(0.1), gradient_descent),
    "SGD": (lambda: optim.SGD(0.1), gradient_descent),
    "SGD with momentum": (lambda: optim.SGD(0.1, 0.9), momentum),
    "Momentum": (lambda: optim.Momentum(0.1), momentum),
    "Momentum with decay": (
        lambda: optim.Momentum(0.1, weight_decay=0.3),
        lambda w, grads: momentum(w, grads, decay=0.3),
    ),
    "Nesterov": (lambda: optim.Nesterov(0.1), nesterov),
    "AdaGrad": (lambda: optim.AdaGrad(0.1), adagrad),
    "RMSprop": (lambda: optim.RMSprop(0.1), rmsprop),
    "Adam": (lambda: optim.Adam(0.1), adam),
    "AdamW": (
        lambda: optim.AdamW(0.1, weight_decay=0.3),
        lambda w, grads: adam(w, grads, decay=0.3),
    ),
}
LAYERWISE = {
    "LARS": (lambda: optim.LARS(0.1, weight_decay=0.01), lars),
    "LAMB": (lambda: optim.LAMB(0.1, weight_decay=0.01), lamb),
}


def run(optimizer, data, grads):
    for grad in grads:
        optimizer.step(data, grad)
    return data


@pytest.fixture(params=[16, 1 << 16], ids=["many pieces", "one piece"])
def piece(request, monkeypatch):
    monkeypatch.setattr(optimizer_module, "PIECE", request.param)


@pytest.mark.parametrize("name", [*ELEMENTWISE, *LAYERWISE])
def test_equals_its_formula(name, piece):
    make, formula = (ELEMENTWISE | LAYERWISE)[name]
    data, grads = start_and_grads()
    expected = formula(data.copy(), grads)
    optimizer = make()
    optimizer.bind(SLICES)
    got = run(optimizer, data, grads)
    error = np.abs(got - expected).max() / np.abs(expected).max()
    print(f"{name}: largest difference {error:.1e}")
    assert error < 1e-13


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_parts_stepped_apart_equal_the_whole_bitwise(name, dtype, piece):
    data, grads = start_and_grads(dtype)
    whole = run(ELEMENTWISE[name][0](), data.copy(), grads)
    for cut in ([0, 13, 40, SIZE], [0, 1, SIZE], [0, 0, SIZE]):
        apart = data.copy()
        for low, high in pairwise(cut):
            run(ELEMENTWISE[name][0](), apart[low:high], [g[low:high] for g in grads])
        assert (apart == whole).all(), f"{name} cut at {cut}: {np.abs(apart - whole).max()}"
    assert whole.dtype == dtype


@pytest.mark.parametrize("name", [*LAYERWISE, "AdamW"])
def test_shards_that_cut_through_parameters_equal_the_whole(name):
    """Two shards in lockstep, whose ``reduce`` sums over both, as a collective would."""
    make = LAYERWISE[name][0] if name in LAYERWISE else lambda: optim.AdamW(exclude=("*bias",))
    data, grads = start_and_grads()
    expected = make()
    expected.bind(SLICES)
    whole = run(expected, data.copy(), grads)

    import greenlet

    cut, arrived = 17, []

    def reduce(sums):
        arrived.append(sums)
        greenlet.getcurrent().parent.switch()  # until the other rank has arrived too

    def rank(low, high, apart):
        optimizer = make()
        optimizer.bind(SLICES, low, reduce)
        run(optimizer, apart[low:high], [g[low:high] for g in grads])

    apart = data.copy()
    ranks = [greenlet.greenlet(rank), greenlet.greenlet(rank)]
    bounds = [(0, cut), (cut, SIZE)]
    for green, (low, high) in zip(ranks, bounds, strict=True):
        green.switch(low, high, apart)
    while arrived:
        total = sum(arrived)
        for sums in arrived:
            sums[...] = total
        arrived.clear()
        for green in ranks:
            green.switch()
    assert all(green.dead for green in ranks)
    np.testing.assert_allclose(apart, whole, rtol=1e-12)


def test_weight_decay_spares_excluded_names():
    data, _ = start_and_grads()
    before = data.copy()
    optimizer = optim.AdamW(0.1, weight_decay=0.5, exclude=("*bias", "norm*"))
    optimizer.bind(SLICES)
    optimizer.step(data, np.zeros(SIZE))
    for name, part in SLICES.items():
        factor = 1.0 if name in ("0.bias", "1.bias", "norm.gain") else 1 - 0.1 * 0.5
        np.testing.assert_allclose(data[part], before[part] * factor, rtol=1e-15, err_msg=name)


@pytest.mark.parametrize("name", [*ELEMENTWISE, *LAYERWISE])
def test_torch_agrees(name):
    torch = pytest.importorskip("torch")
    make = {
        "GradientDescent": lambda p: torch.optim.SGD(p, 0.1),
        "SGD": lambda p: torch.optim.SGD(p, 0.1),
        "SGD with momentum": lambda p: torch.optim.SGD(p, 0.1, 0.9),
        "Momentum": lambda p: torch.optim.SGD(p, 0.1, 0.9),
        "Momentum with decay": lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=0.3),
        "Nesterov": lambda p: torch.optim.SGD(p, 0.1, 0.9, nesterov=True),
        "AdaGrad": lambda p: torch.optim.Adagrad(p, 0.1),
        "RMSprop": lambda p: torch.optim.RMSprop(p, 0.1),
        "Adam": lambda p: torch.optim.Adam(p, 0.1),
        "AdamW": lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.3),
    }
    if name not in make:
        pytest.skip(f"PyTorch has no {name}")
    data, grads = start_and_grads()
    parameter = torch.nn.Parameter(torch.tensor(data.copy()))
    theirs = make[name]([parameter])
    for grad in grads:
        parameter.grad = torch.tensor(grad)
        theirs.step()
    ours = run(ELEMENTWISE[name][0](), data, grads)
    expected = parameter.detach().numpy()
    error = np.abs(ours - expected).max() / np.abs(expected).max()
    print(f"{name}: largest difference to PyTorch {error:.1e}")
    assert error < 1e-12


def test_a_step_allocates_nothing_large():
    import tracemalloc

    size = 1 << 18
    data, grad = np.ones(size, np.float32), np.ones(size, np.float32)
    for name, (make, _) in (ELEMENTWISE | LAYERWISE).items():
        optimizer = make()
        optimizer.bind({"w": slice(0, size)})
        optimizer.step(data, grad)
        tracemalloc.start()
        optimizer.step(data, grad)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        print(f"{name}: {peak} bytes allocated in a step over {data.nbytes}")
        assert peak < 10_000, name


def test_state_bytes_are_the_slots():
    data, grads = start_and_grads(np.float32)
    for name, (make, _) in (ELEMENTWISE | LAYERWISE).items():
        optimizer = make()
        optimizer.bind(SLICES)
        assert optimizer.state_bytes() == 0
        optimizer.step(data, grads[0])
        assert optimizer.state_bytes() == len(optimizer.slots) * data.nbytes, name


def test_schedule_is_called_with_the_step():
    seen = []
    optimizer = optim.SGD(lambda step: seen.append(step) or 0.5**step)
    data = np.zeros(3)
    for _ in range(3):
        optimizer.step(data, np.ones(3))
    assert seen == [0, 1, 2]
    np.testing.assert_array_equal(data, -1.75)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: optim.SGD(-1.0), "learning rate"),
        (lambda: optim.Momentum(0.1, 1.0), "momentum"),
        (lambda: optim.Adam(betas=(0.9, 1.0)), "betas"),
        (lambda: optim.AdamW(weight_decay=-1), "weight_decay"),
    ],
)
def test_bad_settings_say_what_is_wrong(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_misuse_says_what_to_do():
    with pytest.raises(TypeError, match=r"tuple of patterns"):
        optim.AdamW(exclude="*bias")
    with pytest.raises(RuntimeError, match=r"bind\(model.flat.slices\)"):
        optim.LAMB().step(np.zeros(3), np.zeros(3))
    with pytest.raises(ValueError, match="1-D and equal"):
        optim.SGD(0.1).step(np.zeros(3), np.zeros(4))
    optimizer = optim.Adam()
    optimizer.step(np.zeros(3), np.zeros(3))
    with pytest.raises(ValueError, match="state for 3 parameters and was given 4"):
        optimizer.step(np.zeros(4), np.zeros(4))
    optimizer = optim.LARS(0.1)
    optimizer.bind({"w": slice(0, 5)}, start=3)
    with pytest.raises(ValueError, match="cover 2 of them"):
        optimizer.step(np.zeros(3), np.zeros(3))


def test_an_mlp_learns_with_every_optimizer():
    from minidist.models import mlp

    draw = generator(0, "blobs")
    x = draw.standard_normal((64, 8)).astype(np.float32)
    y = (x[:, :4].sum(1) > x[:, 4:].sum(1)).astype(np.int64)
    loss = nn.CrossEntropy()
    rates = {"GradientDescent": 0.5, "SGD": 0.5, "LARS": 20.0}
    for name in optim.__all__:
        kind = getattr(optim, name)
        if not isinstance(kind, type) or name in ("Optimizer", "MixedPrecision"):
            continue
        model = mlp((8, 16, 2)).init(0)
        optimizer = kind(rates.get(name, 0.05))
        optimizer.bind(model.flat.slices)
        losses = []
        for _ in range(60):
            model.zero_grad()
            value = loss(model(x), y)
            value.backward()
            optimizer.step(model.flat.data, model.flat.grad)
            losses.append(value.item())
        print(f"{name}: {losses[0]:.3f} -> {losses[-1]:.3f}")
        assert losses[-1] < 0.5 * losses[0], name


def test_an_optimizer_says_what_it_is():
    assert repr(optim.SGD(0.1, momentum=0.9)) == (
        "SGD(lr=0.1, weight_decay=0.0, exclude=(), momentum=0.9)"
    )


def test_a_learning_rate_may_be_a_numpy_number():
    data, grad = np.ones(3, np.float32), np.full(3, 0.1, np.float32)
    seen = []

    class Watched(optim.GradientDescent):
        def update(self, data, grad, lr, *rest):
            seen.append(type(lr))
            super().update(data, grad, lr, *rest)

    for lr in (np.float64(0.5), lambda step: np.float64(0.5)):
        Watched(lr).step(data, grad)
    assert seen == [float, float]
