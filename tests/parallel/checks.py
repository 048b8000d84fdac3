"""What every method must fulfil, checked on one rank, inside either world.

``check_method(comm, ...)`` runs on every rank: in the local world under plain pytest, and on real
processes by ``tests/mpi``. It trains serially (each rank alone) and by the method, and raises
AssertionError, with what it got and expected, at the first difference. The mutants of
``test_mutants.py`` are wrong methods that it must reject.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from minidist import LocalWorld, launch
from minidist.comm.comm import Comm
from minidist.comm.local.world import LocalComm
from minidist.comm.machine import Machine
from minidist.data import Batches, Dataset
from minidist.engine.array import defaults, module, module_of
from minidist.inspect.meter import measure_saved
from minidist.models import mlp
from minidist.nn import CrossEntropy, Sequential
from minidist.optim import SGD, Optimizer
from minidist.parallel import METHODS, Method, Serial

TOLERANCE = {"float64": 1e-12, "float32": 1e-4}


def images(count: int = 60, pixels: int = 12, classes: int = 5) -> Dataset:
    """A small dataset of random images: equality needs no real ones."""
    random = np.random.default_rng(7)
    inputs = random.standard_normal((count, 3, pixels // 3))
    return Dataset("random", inputs, random.integers(0, classes, count), classes)


def is_exact(key: str) -> bool:
    """Whether a method promises the parameters of serial training."""
    return getattr(METHODS[key], "func", METHODS[key]).exact


@dataclass
class Setting:
    """What is trained, and how long."""

    dataset: Dataset = field(default_factory=images)
    widths: tuple[int, ...] = (12, 9, 7, 6, 5)
    optimizer: Callable[[], Optimizer] = lambda: SGD(0.1, momentum=0.9)
    batch: int = 13
    steps: int = 6
    seed: int = 3
    dtype: str = "float64"
    frozen: tuple[str, ...] = ()  # patterns of parameters that are not trained

    def model(self) -> Sequential:
        model = mlp(self.widths)
        return model.freeze(*self.frozen) if self.frozen else model


def make(key: str, comm: Comm, setting: Setting) -> Method:
    return METHODS[key](setting.model(), CrossEntropy(), setting.optimizer(), comm, setting.seed)


def train(method: Method, setting: Setting) -> tuple[list[float], list[dict[str, np.ndarray]]]:
    """Losses and parameters after every step."""
    batches = Batches(setting.dataset, setting.batch, setting.seed)
    losses, states = [], []
    for step in range(setting.steps):
        losses.append(method.step(batches[step]))
        states.append(method.parameters())
    return losses, states


def serial(comm: Comm, setting: Setting, microbatches: int = 1):
    """The oracle, trained by this rank alone."""
    method = Serial(
        setting.model(),
        CrossEntropy(),
        setting.optimizer(),
        comm.split(comm.rank),
        setting.seed,
        microbatches=microbatches,
    )
    return train(method, setting)


def check_equals_serial(comm: Comm, key: str, setting: Setting) -> None:
    """Every loss and every parameter after every step, on this rank, within the tier's bound."""
    with defaults(dtype=setting.dtype):
        expected_losses, expected_states = serial(comm, setting)
        losses, states = train(make(key, comm, setting), setting)
    bound = TOLERANCE[setting.dtype]
    for step, (got, expected) in enumerate(zip(losses, expected_losses, strict=True)):
        gap = abs(got - expected) / abs(expected)
        assert gap <= bound, f"{key}: loss of step {step} is {got!r}, serial {expected!r}: {gap}"
    for step, (got_state, expected_state) in enumerate(zip(states, expected_states, strict=True)):
        assert list(got_state) == list(expected_state), f"{key}: other parameters: {got_state}"
        for name, expected_values in expected_state.items():
            got_values = got_state[name]
            assert got_values.dtype == np.dtype(setting.dtype), f"{name} is {got_values.dtype}"
            gap = np.abs(got_values - expected_values).max() / np.abs(expected_values).max()
            assert gap <= bound, f"{key}: {name} after step {step} differs from serial by {gap}"


def check_predictions(comm: Comm, key: str, setting: Setting) -> None:
    """Messages, bytes and memory of this rank equal the formula; so does the virtual time."""
    machine = getattr(comm, "machine", Machine())
    with defaults(dtype=setting.dtype):
        method = make(key, comm, setting)
        batches = Batches(setting.dataset, setting.batch, setting.seed)
        for step in range(setting.steps):
            comm.barrier()
            sent, busy, start = comm.trace.sent, comm.trace.busy, comm.time()
            before = sent.messages, sent.nbytes
            owners = [
                array if array.base is None else array.base
                for kind in method.arrays().values()
                for array in kind
            ]
            cost = method.cost(batches[step], machine)
            with measure_saved(exclude=owners) as meter:
                method.step(batches[step])
            seconds = comm.time() - start
            comm.trace.computed(comm.time())
            got = sent.messages - before[0], sent.nbytes - before[1]
            expected = cost.messages[comm.rank], cost.nbytes[comm.rank]
            assert got == expected, f"{key}: sent (messages, bytes) {got}, formula {expected}"

            held = {name: sum(a.nbytes for a in kind) for name, kind in method.arrays().items()}
            held["activations"] = meter.peak
            formula = {name: by_rank[comm.rank] for name, by_rank in cost.peak_bytes.items()}
            assert held == formula, f"{key}: holds {held}, formula {formula}"
            assert meter.bytes == 0, f"{key}: {meter.bytes} bytes still saved after the step"

            if isinstance(comm, LocalComm):
                worked = comm.trace.busy - busy
                assert abs(worked - cost.busy[comm.rank]) <= 1e-9 * max(cost.busy), (
                    f"{key}: rank {comm.rank} computed {worked} s, formula {cost.busy[comm.rank]}"
                )
                if cost.seconds is None:  # it depends on who comes first
                    continue
                slowest = np.array([seconds])
                from minidist.collectives import all_reduce

                all_reduce(comm, slowest, "max")
                assert abs(slowest[0] - cost.seconds) <= 1e-9 * cost.seconds, (
                    f"{key}: the step took {slowest[0]} s, formula {cost.seconds}"
                )


def check_device(key: str, device: str, ranks: int, dtype: str = "float64") -> None:
    """The method's arrays live on ``device``, and losses and parameters equal the host's."""

    def run(comm: Comm, device: str) -> tuple[list[float], list[dict[str, np.ndarray]]]:
        with defaults(dtype=dtype, device=device):
            setting = Setting(steps=3)
            method = make(key, comm, setting)
            result = train(method, setting)
            for kind, held in method.arrays().items():
                for array in held:
                    assert module_of(array) is module(device), f"{key}: {kind} are {type(array)}"
            return result

    size = 1 if key == "serial" else ranks
    there, here = (
        launch(partial(run, device=name), size, LocalWorld()) for name in (device, "cpu")
    )
    for (got_losses, got_states), (losses, states) in zip(there, here, strict=True):
        np.testing.assert_allclose(got_losses, losses, rtol=1e-9, err_msg=key)
        for got, expected in zip(got_states, states, strict=True):
            for name in expected:
                np.testing.assert_allclose(got[name], expected[name], rtol=1e-9, atol=1e-12)
