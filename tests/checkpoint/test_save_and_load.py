"""Saved and loaded: the same run bitwise; and on other numbers of ranks, by other methods."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import strict
from safetensors.numpy import load_file

from minidist import checkpoint
from minidist.checkpoint import Checkpoints, Mismatch
from minidist.checkpoint.files import numbered, remove
from minidist.checkpoint.loading import load
from minidist.checkpoint.stored import Stored, read_manifest
from minidist.data import Batches, Dataset
from minidist.engine import array as arrays
from minidist.engine.array import defaults
from minidist.models import gpt, mlp
from minidist.nn import BatchNorm, CrossEntropy, Linear, ReLU, Sequential
from minidist.optim import SGD, Adam, AdamW
from minidist.parallel import METHODS, DataParallel, Serial, Zero3
from minidist.parallel.mesh import MeshParallel
from minidist.parallel.tensor import TensorParallel
from tests.checkpoint.runs import SETTING, batches_of, gap, method_of, on_ranks, run
from tests.parallel.checks import make

# Asynchronous servers and backup workers take gradients in the order of arrival: no restart can
# repeat that.
REPEATABLE = [k for k in METHODS if not any(word in k for word in ("async", "ssp", "backup"))]
FEW = ["serial", "data_parallel/overlapped", "zero/2", "parameter_server/bsp_sharded",
       "compression/top_k", "local_sgd/diloco", "easgd/sync", "pipeline/pipedream"]  # fmt: skip
FAMILIES = ["serial", "data_parallel/ring", "zero/1", "zero/2", "zero/3", "pipeline/1f1b",
            "parameter_server/bsp_sharded"]  # fmt: skip


@pytest.mark.parametrize(
    "key", [k if k in FEW else pytest.param(k, marks=pytest.mark.long) for k in REPEATABLE]
)
def test_at_the_same_layout_it_is_the_same_run_bitwise(key, tmp_path):
    ranks = 1 if key == "serial" else 3
    overlapped = REPEATABLE.index(key) % 2 == 0
    _, losses, expected = run(key, ranks, tmp_path / "whole", stop=5, every=9)
    run(key, ranks, tmp_path / "c", stop=3, every=3, overlapped=overlapped)
    start, again, got = run(key, ranks, tmp_path / "c", stop=5, every=9)
    assert start == 3
    assert again == losses[3:]
    assert all(np.array_equal(got[name], values) for name, values in expected.items())


@pytest.mark.parametrize("by", FAMILIES)
def test_what_one_method_saved_others_load_on_other_ranks(by, tmp_path):
    """Each by the two methods that follow it in the list, on fewer and on more ranks."""
    _, _, expected = run("serial", 1, tmp_path / "serial", stop=4, every=9)
    run(by, 1 if by == "serial" else 3, tmp_path / "c", stop=2)
    at = FAMILIES.index(by)
    for to, ranks in ((FAMILIES[(at + 1) % 7], 4), (FAMILIES[(at + 3) % 7], 2)):
        start, _, got = run(to, 1 if to == "serial" else ranks, tmp_path / "c", stop=4, every=9)
        assert start == 2
        assert gap(got, expected) < 1e-12


def test_a_rank_reads_its_shard_and_not_the_rest(tmp_path):
    run("zero/1", 4, tmp_path, stop=2)
    (_, newest), *_ = numbered(tmp_path)

    def read(comm, key):
        method = method_of(key, comm)
        stored = Stored(newest, read_manifest(newest))
        method.load(stored)
        return stored.bytes_read

    total = on_ranks(1, read, "serial")[0]
    assert total == 3 * 302 * 8 + 8 or total == pytest.approx(3 * 302 * 8, rel=0.02)
    # Whole matrices are read whole: with these sizes at most one of 9 x 9 a state array too much.
    for key in ("zero/3", "parameter_server/bsp_colocated"):
        for nbytes in on_ranks(4, read, "zero/3"):
            assert nbytes < total / 4 + 3 * 81 * 8 + 100, key


def test_the_last_k_stay_and_the_step_is_in_their_name(tmp_path):
    run("data_parallel/ring", 2, tmp_path, stop=6, every=1, keep=3)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"save-{n:06}-step-{n:08}" for n in (4, 5, 6)]


def test_notes_and_step_come_back(tmp_path):
    def save(comm):
        method = method_of("zero/1", comm)
        checkpoint.save(tmp_path, method, notes={"best": 0.5, "names": ["a"]})
        with pytest.raises(checkpoint.CheckpointError, match="not JSON serializable"):
            checkpoint.save(tmp_path, method, 0, notes={"x": object()})
        return load(tmp_path, method_of("zero/1", comm))

    for loaded in on_ranks(2, save):
        assert (loaded.step, loaded.notes) == (0, {"best": 0.5, "names": ["a"]})
        assert loaded.manifest.ranks == 2


def test_buffers_are_saved(tmp_path):
    def body(comm):
        layers = Linear(12, 6), BatchNorm(6), ReLU(), Linear(6, 5)
        return DataParallel(Sequential(*layers), CrossEntropy(), SGD(0.1), comm)

    def save(comm):
        method = body(comm)
        batches = Batches(
            replace(SETTING.dataset, inputs=SETTING.dataset.inputs.reshape(60, 12)), 13
        )
        method.step(batches[0])
        checkpoint.save(tmp_path, method, 1)
        return method.buffers()

    def restore(comm):
        method = body(comm)
        load(tmp_path, method)
        return method.buffers()

    expected = on_ranks(2, save)[0]
    for got in on_ranks(3, restore):
        assert expected.keys() == got.keys() != set()
        assert all(np.array_equal(got[name], values) for name, values in expected.items())


def test_saving_overlapped_copies_and_does_not_wait(tmp_path, monkeypatch):
    """While the file is held back, training goes on; what is saved is the state at the save."""
    from minidist.checkpoint import writing as module

    hold, original = threading.Event(), module.write_shares

    def held_back(*args):
        assert hold.wait(20)
        original(*args)

    monkeypatch.setattr(module, "write_shares", held_back)

    def body(comm):
        with defaults(dtype="float64"):
            method, batches = make("zero/1", comm, SETTING), batches_of()
            with Checkpoints(tmp_path, method, batches, overlapped=True) as checkpoints:
                method.step(batches[0])
                saved = method.state()
                checkpoints.save(1)
                method.step(batches[1])
                assert numbered(tmp_path) == []
                hold.set()
            return saved

    saved = on_ranks(2, body)[0]
    state = on_ranks(1, lambda comm: loaded_state(comm, tmp_path))[0]
    assert saved.keys() == state.keys()
    assert all(np.array_equal(state[name], values) for name, values in saved.items())


def test_slices_of_tensors_and_meshes_are_loaded_by_others_and_back(tmp_path):
    text = np.random.default_rng(3).integers(0, 12, (24, 7))
    batches = Batches(Dataset("tokens", text[:, :-1], text[:, 1:], 12), 8, 0)

    def body(comm, method, start, stop):
        model = gpt(12, context=6, width=8, layers=2, heads=4)
        method = method(model, CrossEntropy(), AdamW(1e-2), comm)
        with Checkpoints(tmp_path, method, batches) as checkpoints:
            assert checkpoints.resume() == start
            for step in range(start, stop):
                method.step(batches[step])
            checkpoints.save(stop)
        return method.parameters()

    on_ranks(4, body, TensorParallel, 0, 2)
    on_ranks(3, body, Zero3, 2, 3)
    on_ranks(2, body, TensorParallel, 3, 4)
    on_ranks(8, body, partial(MeshParallel, mesh={"dp": 2, "pp": 2, "tp": 2}, zero=3), 4, 5)
    on_ranks(4, body, partial(MeshParallel, mesh={"pp": 2, "tp": 2}), 5, 6)
    got = on_ranks(1, body, Serial, 6, 7)[0]
    for path in tmp_path.iterdir():
        remove(path)
    assert gap(got, on_ranks(1, body, Serial, 0, 7)[0]) < 1e-12


def loaded_state(comm, folder):
    method = method_of("serial", comm)
    load(folder, method)
    return method.state()


@pytest.mark.parametrize(
    "key, overlapped",
    [("zero/3", True), ("parameter_server/bsp", False), ("local_sgd/diloco", True)],
)
def test_from_a_device_to_the_host_and_back(key, overlapped, tmp_path, monkeypatch):
    """A stand-in for a GPU, whose arrays refuse to mix with the host's."""
    monkeypatch.setitem(arrays.DEVICES, "strict", lambda: strict)

    def body(comm, device, start, stop):
        with defaults(dtype="float64", device=device):
            method, batches = make(key, comm, SETTING), batches_of()
            with Checkpoints(tmp_path, method, batches, overlapped=overlapped) as checkpoints:
                assert checkpoints.resume() == start
                for step in range(start, stop):
                    method.step(batches[step])
                checkpoints.save(stop)
            return method.parameters()

    for device, start in (("strict", 0), ("cpu", 1), ("strict", 2)):
        got = on_ranks(3, body, device, start, start + 1)[0]
    _, _, expected = run(key, 3, tmp_path / "host", stop=3, every=9)
    assert gap(got, expected) < 1e-12


# Of something else


def other(comm, **changes):
    with defaults(dtype=changes.pop("dtype", "float64")):
        return make("serial", comm, replace(SETTING, **changes))


OTHERS = {
    "wider": ({"widths": (12, 9, 9, 7, 5)}, r"5\.weight is \(9, 6\) in the state and \(9, 7\)"),
    "deeper": ({"widths": (12, 9, 9, 6, 6, 5)}, "differ in"),
    "optimizer": ({"optimizer": lambda: Adam(1e-2)}, "optimizer AdamW, and this method has Adam"),
    "seed": ({"seed": 4}, "seed 3, and this method has 4"),
    "dtype": ({"dtype": "float32"}, "is float64, and this method computes in float32"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_checkpoint_of_something_else_is_refused(what, tmp_path):
    run("serial", 1, tmp_path, stop=2)
    changes, reason = OTHERS[what]
    with pytest.raises(Mismatch, match=reason):
        on_ranks(1, lambda comm: load(tmp_path, other(comm, **changes)))


def test_another_dtype_is_converted_on_request(tmp_path):
    run("serial", 1, tmp_path, stop=2)
    loaded = on_ranks(1, lambda comm: load(tmp_path, other(comm, dtype="float32"), cast=True))
    assert loaded[0].step == 2


def test_another_order_of_samples_is_refused(tmp_path):
    run("serial", 1, tmp_path, stop=2)
    batches = Batches(SETTING.dataset, 7, SETTING.seed)
    with pytest.raises(Mismatch, match="size 13 and now 7"):
        on_ranks(1, lambda comm: load(tmp_path, method_of("serial", comm), batches))


@pytest.mark.parametrize("key", ["serial", "data_parallel/ring", "zero/3", "parameter_server/bsp",
                                 "pipeline/1f1b"])  # fmt: skip
def test_a_state_with_a_transposed_parameter_is_refused_by_every_kind_of_method(key):
    def body(comm, name):
        method, batches = method_of(key, comm), batches_of()
        method.step(batches[0])
        state = method.state()
        assert state[name].shape == (12, 9)
        state[name] = state[name].T.copy()
        with pytest.raises(ValueError, match=r"\(9, 12\)"):
            method_of(key, comm).load(state)

    for name in ("parameters/1.weight", "optimizer/mean/1.weight"):
        on_ranks(1 if key == "serial" else 3, body, name)


# One file


@pytest.mark.parametrize("key", ["serial", "zero/3", "pipeline/1f1b", "parameter_server/bsp"])
def test_one_file_with_serial_names_out_and_in(key, tmp_path):
    path = tmp_path / "model.safetensors"

    def out(comm):
        method, batches = method_of(key, comm), batches_of()
        method.step(batches[0])
        checkpoint.export_parameters(path, method)
        return method.parameters()

    ranks = 1 if key == "serial" else 3
    expected = on_ranks(ranks, out)[0]
    found = load_file(path)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], values) for name, values in expected.items())
    assert [p.name for p in tmp_path.iterdir()] == [path.name]

    def back(comm):
        method = method_of(key, comm)
        checkpoint.import_parameters(path, method)
        return method.parameters()

    for got in on_ranks(ranks, back):
        assert all(np.array_equal(got[name], values) for name, values in expected.items())
    model = mlp(SETTING.widths).init(0, dtype="float64")
    checkpoint.import_parameters(path, model)
    assert all(np.array_equal(model.state()[name], v) for name, v in expected.items())


def test_a_file_of_another_model_is_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    checkpoint.export_parameters(path, mlp((4, 3)).init(0))
    with pytest.raises(Mismatch, match=r"of shape \(4, 3\), and the model's is of shape \(3, 4\)"):
        checkpoint.import_parameters(path, mlp((3, 4)).init(0))
    with pytest.raises(Mismatch, match="differ in"):
        checkpoint.import_parameters(path, mlp((4, 3, 3)).init(0))
    path.write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(checkpoint.Damaged, match="safetensors"):
        checkpoint.import_parameters(path, mlp((4, 3)).init(0))


def test_the_optimizer_is_of_use_in_the_next_step(tmp_path):
    """AdamW's moments count: without them the next step is another one."""
    _, _, expected = run("serial", 1, tmp_path / "a", stop=3, every=9)

    def without(comm):
        with defaults(dtype="float64"):
            method, batches = make("serial", comm, SETTING), batches_of()
            for step in range(2):
                method.step(batches[step])
            path = tmp_path / "m.safetensors"
            checkpoint.export_parameters(path, method)
            method = make("serial", comm, SETTING)
            checkpoint.import_parameters(path, method)
            method.step(batches[2])
            return method.parameters()

    assert isinstance(SETTING.optimizer(), AdamW)
    assert gap(on_ranks(1, without)[0], expected) > 1e-3
