"""What the ranks write into a checkpoint: together the whole state, each element once."""

from __future__ import annotations

import numpy as np
import pytest

from minidist import LocalWorld, launch
from minidist.data import Batches, Dataset
from minidist.engine.array import defaults
from minidist.models import gpt, mlp
from minidist.nn import CrossEntropy
from minidist.optim import SGD, AdamW
from minidist.parallel import METHODS, Pipeline, ReduceScatterUnits
from minidist.parallel.mesh import MeshParallel
from minidist.parallel.shares import Share
from minidist.parallel.tensor import TensorParallel
from tests.parallel.checks import Setting, make


def joined(shares: list[list[Share]]) -> dict[str, np.ndarray]:
    """The arrays that all ranks' shares make up; raises where one is written twice or never."""
    values, times = {}, {}
    for share in (share for rank in shares for share in rank):
        box = (*(slice(*side) for side in share.box), ...)
        whole = values.setdefault(share.name, np.zeros(share.shape, share.data.dtype))
        count = times.setdefault(share.name, np.zeros(share.shape, int))
        inside = np.zeros(whole[box].size, bool)
        inside[slice(*share.span)] = True
        whole[box][inside.reshape(whole[box].shape)] = share.data
        count[box] += inside.reshape(whole[box].shape)
    for name, count in times.items():
        assert np.all(count == 1), f"{name}: elements are written {np.unique(count)} times"
    return values


def check_shares(method) -> tuple[dict[str, np.ndarray], list[Share], int]:
    state = method.state()
    before = method.comm.trace.sent.nbytes
    shares = method.state_shares()
    return state, shares, method.comm.trace.sent.nbytes - before


def check_joined(found) -> None:
    state = found[0][0]
    got = joined([shares for _, shares, _ in found])
    assert got.keys() == state.keys()
    for name, expected in state.items():
        assert np.array_equal(got[name], expected), name
        assert got[name].dtype == expected.dtype, name


@pytest.mark.parametrize("key", METHODS)
def test_all_shares_are_the_state_each_element_once(key):
    def run(comm):
        with defaults(dtype="float64"):
            setting = Setting(optimizer=lambda: AdamW(1e-2))
            method = make(key, comm, setting)
            for step in range(2):
                method.step(Batches(setting.dataset, setting.batch, setting.seed)[step])
            return check_shares(method)

    for ranks in (1,) if key == "serial" else (1, 4):
        check_joined(launch(run, ranks, LocalWorld()))


@pytest.mark.parametrize("key", ["zero/1", "zero/3", "parameter_server/bsp", "pipeline/1f1b"])
def test_frozen_parameters_are_written_once(key):
    def run(comm):
        setting = Setting()
        model = mlp(setting.widths).freeze("1.*", "5.bias")
        method = METHODS[key](model, CrossEntropy(), AdamW(1e-2), comm, setting.seed)
        method.step(Batches(setting.dataset, setting.batch, setting.seed)[0])
        return check_shares(method)

    check_joined(launch(run, 3, LocalWorld()))


WITHOUT_GATHERING = [
    "data_parallel/ring",
    "zero/1",
    "zero/2",
    "zero/3",
    "parameter_server/bsp",
    "parameter_server/ssp_sharded",
    "pipeline/1f1b",
    "compression/top_k",
]


@pytest.mark.parametrize("key", WITHOUT_GATHERING)
def test_to_save_these_send_a_number_and_no_state(key):
    def run(comm):
        setting = Setting()
        method = make(key, comm, setting)
        method.step(Batches(setting.dataset, setting.batch, setting.seed)[0])
        return check_shares(method)

    found = launch(run, 4, LocalWorld())
    assert max(sent for _, _, sent in found) <= 32
    written = [sum(share.data.nbytes for share in shares) for _, shares, _ in found]
    held = sum(values.nbytes for name, values in found[0][0].items() if not name.startswith("rank"))
    if key.startswith(("data_parallel", "zero")):
        assert max(written) < held / 4 + 100


def test_what_two_stages_share_is_written_once_and_copies_divide_the_work():
    text = np.random.default_rng(3).integers(0, 11, (24, 7))
    dataset = Dataset("tokens", text[:, :-1], text[:, 1:], 11)

    def run(comm):
        model = gpt(11, context=6, width=8, layers=2, heads=2)
        method = Pipeline(
            model, CrossEntropy(), SGD(0.1, momentum=0.9), comm, replicas=2, sync=ReduceScatterUnits
        )
        method.step(Batches(dataset, 8, 0)[0])
        return check_shares(method)

    found = launch(run, 4, LocalWorld())
    check_joined(found)
    assert all(shares for _, shares, _ in found)


def test_a_first_stage_without_parameters_still_saves_the_number_of_steps():
    def run(comm):
        setting = Setting()
        bounds = [(0, 1), (1, 8)]  # a Flatten alone
        model, optimizer = mlp(setting.widths), AdamW(1e-2)
        method = Pipeline(
            model,
            CrossEntropy(),
            optimizer,
            comm,
            bounds=bounds,
            replicas=2,
            sync=ReduceScatterUnits,
        )
        method.step(Batches(setting.dataset, setting.batch, setting.seed)[0])
        return check_shares(method)

    found = launch(run, 4, LocalWorld())
    check_joined(found)
    assert found[0][0]["steps"] == 1


@pytest.mark.parametrize("mesh, zero", [({"dp": 2, "pp": 2}, 3), ({"dp": 2, "tp": 2}, 1)])
def test_meshes(mesh, zero):
    """Without cuts in layers each rank writes what it holds; with them the state is gathered."""
    text = np.random.default_rng(3).integers(0, 12, (24, 7))
    dataset = Dataset("tokens", text[:, :-1], text[:, 1:], 12)

    def run(comm):
        model = gpt(12, context=6, width=8, layers=2, heads=4)
        method = MeshParallel(model, CrossEntropy(), AdamW(1e-2), comm, mesh=mesh, zero=zero)
        method.step(Batches(dataset, 8, 0)[0])
        return check_shares(method)

    found = launch(run, 4, LocalWorld())
    check_joined(found)
    assert ("tp" in mesh) == (max(sent for _, _, sent in found) > 64)


def test_tensor_parallelism_writes_boxes():
    """Heads of q, k and v are three boxes of one matrix; rows and columns one each."""
    text = np.random.default_rng(3).integers(0, 12, (24, 7))
    dataset = Dataset("tokens", text[:, :-1], text[:, 1:], 12)

    def run(comm):
        model = gpt(12, context=6, width=8, layers=1, heads=4)
        method = TensorParallel(model, CrossEntropy(), AdamW(1e-2), comm)
        method.step(Batches(dataset, 8, 0)[0])
        return check_shares(method)

    found = launch(run, 4, LocalWorld())
    check_joined(found)
    shares = [shares for _, shares, _ in found]
    qkv = [
        share.box[-1] for share in shares[1] if share.name.startswith("parameters/1.attention.qkv")
    ]
    assert len(qkv) > 2, [share.name for share in shares[1]]
    assert max(sent for _, _, sent in found) <= 64
