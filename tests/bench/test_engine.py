"""The bench's parts: what it times is the same model everywhere, and its numbers are sane."""

import dataclasses
import io
import json
import tracemalloc
import types

import numpy as np
import pytest
import strict
from rich.console import Console

from minidist import models
from minidist.bench import engine, functional, peer, timing
from minidist.engine import array as arrays
from minidist.nn import CrossEntropy


def test_ratios_are_of_the_same_round():
    times = {"ours": [1.0, 2.0, 100.0], "theirs": [2.0, 4.0, 200.0]}
    assert timing.ratio(times, "ours", "theirs") == 0.5
    assert timing.ratio(times, "ours", "absent") is None
    counts = {"a": 0, "b": 0}

    def step(name):
        counts[name] += 1

    got = timing.interleaved({n: (lambda n=n: step(n)) for n in counts}, 0.0, rounds=4)
    assert counts == {"a": 6, "b": 6} and [len(t) for t in got.values()] == [4, 4]


def test_a_step_in_another_process_is_asked_for_its_time():
    class There:
        def __init__(self):
            self.asked = []

        def seconds(self, runs):
            self.asked.append(runs)
            return 2.0 * runs

    there = There()
    times = timing.interleaved({"here": lambda: None, "there": there}, 0.0, rounds=3, in_a_row=4)
    assert times["there"] == [8.0] * 3 and there.asked == [2, 4, 4, 4]  # 2 warm up
    assert timing.microseconds(there, 5, 3) == 10e6


def test_a_peers_process_answers_each_number_with_seconds(monkeypatch, capsys):
    calls = []
    module = types.SimpleNamespace(
        step=lambda case, device, dtype, **options: lambda: calls.append((case.name, options)),
        one_element=lambda device: lambda: calls.append(device),
    )
    monkeypatch.setattr(peer, "import_module", lambda name: module)
    monkeypatch.setattr("sys.stdin", io.StringIO("MLP 32×784-128-128-10\n3\n1\n\n2\n"))
    peer.main("fused", "cpu", "float32", "cpu")
    assert calls == [("MLP 32×784-128-128-10", {"fused": True})] * 4 + ["cpu"] * 2
    ready, *seconds, again, last = capsys.readouterr().out.split()
    assert (ready, again) == ("ready", "ready")
    assert len(seconds) == 2 and all(float(one) >= 0 for one in (*seconds, last))


def test_a_peer_that_ends_says_why():
    gone = peer.Peer("torch", "cpu", "float32", "wall")
    with pytest.raises(RuntimeError, match=r"torch's process ended: \w+Error"):
        gone.load("no such case")
    assert gone.process.returncode == 1
    gone.close()


def test_the_parts_of_a_case_are_its_batch_and_train_as_one():
    case = next(one for one in engine.cases() if one.microbatches == 4)
    parts = case.parts()
    assert [len(x) for x, _ in parts] == [32] * 4
    assert np.array_equal(np.concatenate([x for x, _ in parts]), case.inputs)
    engine.training_step(case, "cpu")()
    in_parts = case.model.flat.data.copy()
    engine.training_step(dataclasses.replace(case, microbatches=1), "cpu")()
    np.testing.assert_allclose(in_parts, case.model.flat.data, rtol=0, atol=1e-7)


def test_peak_bytes_sees_arrays_that_come_and_go():
    peak = timing.peak_bytes(lambda: np.ones(1 << 20, np.uint8).sum())
    assert 1 << 20 <= peak < 1.2 * (1 << 20)
    assert not tracemalloc.is_tracing()


def test_peak_bytes_on_a_gpu_is_the_most_that_the_pool_handed_out(monkeypatch):
    hooks = []

    class MemoryHook:  # CuPy's: told of each block that is taken and given back
        def __enter__(self):
            hooks.append(self)
            return self

        def __exit__(self, *error):
            hooks.remove(self)

    module = types.SimpleNamespace(cuda=types.SimpleNamespace(MemoryHook=MemoryHook))
    monkeypatch.setitem(arrays.DEVICES, "fake", lambda: module)

    def step():
        (hook,) = hooks
        hook.malloc_postprocess(device_id=0, size=20, mem_size=512, mem_ptr=1, pmem_id=1)
        hook.free_postprocess(device_id=0, mem_size=512, mem_ptr=1, pmem_id=1)
        for start in (1, 2):
            hook.malloc_postprocess(device_id=0, size=9, mem_size=1024, mem_ptr=start, pmem_id=1)

    assert timing.peak_bytes(step, "fake") == 2048


def test_the_command_writes_what_it_prints(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(peer, "PEERS", {})
    monkeypatch.setattr(engine, "microseconds", lambda step, clock: 1.0)
    file = tmp_path / "engine.json"
    assert engine.run(["--seconds", "0", "--only", "MLP 32", "--json", str(file)]) == 0
    results = json.loads(file.read_text())
    (row,) = results["cases"]
    assert row["case"] in capsys.readouterr().out
    assert row["ratio_to_torch"] is None and row["minidist_ms"] > 0
    assert set(results["versions"]) == {"python", "numpy"}
    products = 784 * 128 + 128 * 128 + 128 * 10
    assert row["flops"] == 2 * 32 * (3 * products - 784 * 128), "no gradient of the data"
    parameters_and_gradients = 0  # held before the step
    assert row["peak_bytes"] > parameters_and_gradients
    assert row["mfu"] == pytest.approx(row["matmul_ms"] / row["minidist_ms"])


def test_the_table_has_80_columns_with_all_libraries():
    names = [*engine.PEERS, "matmul"]
    row = {"peak_bytes": 174.2e6, "minidist_ms": 698.71}
    row |= {f"{name}_ms": 1.0 for name in names} | {f"ratio_to_{name}": 10.06 for name in names}
    rows = [row | {"case": case.name} for case in engine.cases()]
    found = {"device": "cpu", "threads": "1", "cases": rows, "one_element_us": {"minidist": 6.3}}
    console = Console(width=80, file=io.StringIO())
    engine.report(found, console)
    lines = console.file.getvalue().splitlines()
    for case in engine.cases():
        (line,) = [line for line in lines if case.name in line]
        assert line.split()[-7:] == ["698.71", *["10.06×"] * 5, "174.2"] and len(line) <= 80


def test_a_device_that_is_not_there_is_an_error_in_one_line(capsys):
    with pytest.raises(SystemExit) as stopped:
        engine.run(["--device", "tpu"])
    assert stopped.value.code == 2
    assert "unknown device 'tpu': choose one of cpu, cuda" in capsys.readouterr().err


def numbers(*shape):
    return np.random.default_rng(0).standard_normal(shape)


PEERS = {
    "mlp": (lambda: models.mlp((12, 8, 8, 5)), numbers(4, 12), (4,), "mlp", ((12, 8, 8, 5),)),
    "cnn": (lambda: models.cnn(2, 5, 8), numbers(4, 8, 8), (4,), "cnn", (2, 5, 8, 128)),
    "gpt": (
        lambda: models.gpt(7, 6, 8, 2, 2), np.arange(12).reshape(2, 6) % 7, (2, 6), "GPT",
        (7, 6, 8, 2, 2),
    ),
}  # fmt: skip


def ours(make, inputs, labels):
    model = make().init(0, dtype="float64")
    model.zero_grad()
    loss = CrossEntropy()(model(inputs), labels)
    loss.backward()
    return model, loss.item()


def labels_for(shape):
    return np.arange(int(np.prod(shape))).reshape(shape) % 5


@pytest.mark.parametrize("name", PEERS)
def test_losses_and_gradients_equal_pytorch(name):
    torch = pytest.importorskip("torch")
    from minidist.bench import peer_torch

    make, inputs, shape, builder, arguments = PEERS[name]
    labels = labels_for(shape)
    model, loss = ours(make, inputs, labels)
    peer = getattr(peer_torch, builder)(*arguments).double()
    theirs = list(peer.parameters())
    mine = list(model.parameters())
    if name == "gpt":  # PyTorch lists a module's own parameters first
        mine[0], mine[1] = mine[1], mine[0]
    assert len(mine) == len(theirs)
    for parameter, other in zip(mine, theirs, strict=True):
        value = torch.tensor(turned(parameter.data, tuple(other.shape)))
        with torch.no_grad():
            other.copy_(value)
    logits = peer(torch.tensor(inputs))
    expected = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), torch.tensor(labels).reshape(-1)
    )
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-10)
    for parameter, other in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(
            turned(parameter.grad, tuple(other.shape)), other.grad, rtol=1e-10, atol=1e-12,
            err_msg=parameter.name,
        )  # fmt: skip


def turned(array, shape):
    """PyTorch stores a linear weight (out, in)."""
    linear = array.ndim == 2 and (array.shape != shape or array.shape[0] == array.shape[1])
    return array.T.copy() if linear else array


@pytest.mark.parametrize("name", PEERS)
def test_losses_and_gradients_equal_autograd(name):
    pytest.importorskip("autograd")
    import autograd.numpy as anp
    from autograd import grad

    from minidist.bench import peer_autograd

    check_functional(name, peer_autograd, anp, grad)


@pytest.mark.parametrize("name", PEERS)
def test_losses_and_gradients_equal_jax(name):
    jax = pytest.importorskip("jax")
    from minidist.bench import peer_jax

    with jax.enable_x64(True):
        check_functional(name, peer_jax, jax.numpy, jax.grad)


def check_functional(name, peer, xp, grad):
    make, inputs, shape, _, arguments = PEERS[name]
    labels = labels_for(shape)
    model, _ = ours(make, inputs, labels)
    forward = peer.forward_of(name, arguments)
    parameters = [xp.array(parameter.data) for parameter in model.parameters()]

    def loss(p):
        return functional.cross_entropy(xp, forward(p, inputs), labels) / labels.size

    gradients = grad(loss)(parameters)
    for parameter, expected in zip(model.parameters(), gradients, strict=True):
        np.testing.assert_allclose(
            parameter.grad, expected, rtol=1e-10, atol=1e-12, err_msg=parameter.name
        )


# Launches of one training step on the stand-in, which counts one a call. A GPU's profiler sees a
# few more: cuBLAS splits some products in two kernels. The addresses of the matrices in a stack are
# written where an array has moved since the last step, at most once a batched product.
LAUNCHES = {"MLP 32": (25, 0), "CNN": (54, 0), "GPT 8×64": (192, 24)}


@pytest.mark.parametrize("name", LAUNCHES)
def test_a_step_launches_few_kernels_and_never_waits(name, monkeypatch):
    monkeypatch.setitem(arrays.DEVICES, "strict", lambda: strict)
    (case,) = [case for case in engine.cases() if case.name.startswith(name)]
    step = engine.training_step(case, "strict")
    step()
    strict.counts.clear()
    step()
    launches, lists = LAUNCHES[name]
    assert strict.counts["kernels"] - strict.counts["pointers"] <= launches, strict.counts
    assert strict.counts["pointers"] <= lists
    assert strict.counts["waits"] == strict.counts["uploads"] == 0


def test_half_precision_waits_once_a_step(monkeypatch):
    monkeypatch.setitem(arrays.DEVICES, "strict", lambda: strict)
    case = engine.cases()[0]
    step = engine.training_step(case, "strict", "float16")
    step()
    strict.counts.clear()
    step()
    assert strict.counts["waits"] == 1, "to see whether the gradients overflowed"
