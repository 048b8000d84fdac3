"""What tensor parallelism and meshes must fulfil, checked on one rank, inside either world."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minidist import nn
from minidist.comm.comm import Comm
from minidist.comm.local.world import LocalComm
from minidist.comm.machine import Machine
from minidist.data import Batches, Dataset
from minidist.engine.array import defaults
from minidist.inspect.meter import measure_saved
from minidist.models.gpt import gpt
from minidist.nn import CrossEntropy
from minidist.nn.init import normal
from minidist.optim import SGD, AdamW, Optimizer
from minidist.optim.clip import norm_of
from minidist.parallel import Serial

IGNORE = 63


def texts(count: int = 40, length: int = 8, vocabulary: int = 13) -> Dataset:
    """Random tokens; some targets are ignored, and far more in some samples than in others."""
    random = np.random.default_rng(5)
    tokens = random.integers(0, vocabulary, (count, length))
    targets = random.integers(0, vocabulary, (count, length))
    targets[random.random((count, length)) < np.linspace(0, 0.9, count)[:, None]] = IGNORE
    return Dataset("texts", tokens, targets, vocabulary)


def small_gpt(
    layers: int = 2,
    heads: int = 4,
    groups: int | None = None,
    rotary: bool = False,
    width: int = 16,
    dropout: float = 0.2,
    vocabulary: int = 13,
    recompute: bool = False,
) -> nn.Sequential:
    """A GPT with larger initial weights, so that five steps change it; norms are not 1."""
    model = gpt(vocabulary, 8, width, layers, heads, dropout)
    for block in list(model.blocks.values())[1:-1]:
        block.attention = nn.CausalSelfAttention(
            width,
            heads,
            groups,
            rotary,
            initialiser=normal(0.2),
            out_initialiser=normal(0.2),
            recompute=recompute,
        )
    return model


def small_mlp() -> nn.Sequential:
    """Two pairs and a layer whose outputs stay cut; widths that do not divide."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(12, 9),
        nn.Dropout(0.2),
        nn.ReLU(),
        nn.Linear(9, 7),
        nn.ReLU(),
        nn.LayerNorm(7),
        nn.Linear(7, 5),
        input_shape=(3, 4),
    )


def images() -> Dataset:
    random = np.random.default_rng(7)
    inputs = random.standard_normal((60, 3, 4))
    return Dataset("images", inputs, random.integers(0, 5, 60), 5)


def momentum() -> Optimizer:
    return SGD(0.5, momentum=0.9, weight_decay=1e-3)


def adamw() -> Optimizer:
    return AdamW(lambda step: 1e-2 / (1 + step), weight_decay=0.1)


def gpt_loss() -> CrossEntropy:
    return CrossEntropy(IGNORE, label_smoothing=0.1, z_loss=1e-2)


@dataclass
class Task:
    """What is trained, and how long."""

    model: Callable[[], nn.Sequential] = small_gpt
    data: Callable[[], Dataset] = texts
    loss: Callable[[], CrossEntropy] = gpt_loss
    optimizer: Callable[[], Optimizer] = momentum
    batch: int = 9
    steps: int = 5
    seed: int = 3
    clip: float | None = 0.3
    options: dict[str, Any] = field(default_factory=dict)

    def batches(self) -> Batches:
        return Batches(self.data(), self.batch, self.seed)


MLP = {"model": small_mlp, "data": images, "loss": CrossEntropy}


def train(
    method: Any, task: Task, first: int = 0, norms: list[float | None] | None = None
) -> tuple[list[float], dict[str, np.ndarray]]:
    """``norms`` gets those of the gradient by which a mesh or a pipeline has clipped."""
    batches, losses = task.batches(), []
    for step in range(first, task.steps):
        losses.append(method.step(batches[step]))
        if norms is not None and hasattr(method, "run"):
            norms.append(method.run.norm)
    return losses, method.parameters()


def serial(comm: Comm, task: Task, microbatches: int = 1) -> Any:
    alone = comm.split(comm.rank)
    return Serial(
        task.model(),
        task.loss(),
        task.optimizer(),
        alone,
        task.seed,
        microbatches=microbatches,
        clip=task.clip,
    )


def largest_gap(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> tuple[float, str]:
    """The largest difference, relative to the largest value of its array, and where it is."""
    assert list(got) == list(expected), f"other parameters: {list(got)}"
    gaps = []
    for name, values in expected.items():
        assert got[name].shape == values.shape, f"{name} is {got[name].shape}, not {values.shape}"
        scale = np.abs(values).max() or 1.0
        gaps.append((float(np.abs(got[name] - values).max()) / scale, name))
    return max(gaps)


ORACLES: dict[Any, Any] = {}  # serial training, once for all ranks in this process


def with_norms(
    method: Serial, task: Task
) -> tuple[list[float], dict[str, np.ndarray], list[float]]:
    """Losses, parameters, and the norm of each step's gradient before it is clipped."""
    norms, update = list[float](), method.update

    def noted() -> None:
        norms.append(norm_of(method.model.flat.grad))
        update()

    method.update = noted  # type: ignore[method-assign]
    return *train(method, task), norms


def oracle(comm: Comm, task: Task) -> tuple[list[float], dict[str, np.ndarray], list[float]]:
    """Losses, parameters and norms of the gradient in serial training."""
    made = repr((task.model, task.data, task.loss, task.optimizer))
    key = made, task.clip, task.batch, task.steps, task.seed
    alone, local = comm.split(comm.rank), isinstance(comm, LocalComm)
    if key not in ORACLES and (comm.rank == 0 or not local):
        # With the task, so that no other function gets its address, and so its key.
        ORACLES[key] = task, with_norms(serial(alone, task), task)
    comm.barrier()
    return ORACLES[key][1]


def check_equals_serial(
    comm: Comm, kind: Callable[..., Any], task: Task, bound: float = 1e-10
) -> None:
    """Losses, norms, and parameters after five steps, are those of serial training."""
    norms: list[float | None] = []
    with defaults(dtype="float64"):
        expected_losses, expected, expected_norms = oracle(comm, task)
        method = kind(
            task.model(),
            task.loss(),
            task.optimizer(),
            comm,
            task.seed,
            clip=task.clip,
            **task.options,
        )
        losses, got = train(method, task, norms=norms)
    if task.clip is not None and norms:
        gap = max(abs(a - b) / b for a, b in zip(norms, expected_norms, strict=True))
        assert gap <= bound, f"norm {norms}, serial {expected_norms}: {gap}"
    gap = max(abs(a - b) / abs(b) for a, b in zip(losses, expected_losses, strict=True))
    assert gap <= bound, f"loss {losses}, serial {expected_losses}: {gap}"
    gap, name = largest_gap(got, expected)
    assert gap <= bound, f"{name} differs from serial by {gap}"


def check_predictions(comm: Comm, kind: Callable[..., Any], task: Task) -> None:
    """Messages, bytes and memory of this rank equal the formula, and so does what it computed."""
    machine = getattr(comm, "machine", Machine())
    with defaults(dtype="float64"):
        method = kind(
            task.model(),
            task.loss(),
            task.optimizer(),
            comm,
            task.seed,
            clip=task.clip,
            **task.options,
        )
        batches = task.batches()
        for step in range(2):
            comm.barrier()
            sent, busy = comm.trace.sent, comm.trace.busy
            before = sent.messages, sent.nbytes
            owners = [
                array if array.base is None else array.base
                for kind in method.arrays().values()
                for array in kind
            ]
            with measure_saved(exclude=owners) as meter:
                method.step(batches[step])
            comm.trace.computed(comm.time())
            cost = method.cost(batches[step], machine)
            got = sent.messages - before[0], sent.nbytes - before[1]
            expected = cost.messages[comm.rank], cost.nbytes[comm.rank]
            assert got == expected, f"sent (messages, bytes) {got}, formula {expected}"
            held = {name: sum(a.nbytes for a in kind) for name, kind in method.arrays().items()}
            held["activations"] = meter.peak
            formula = {name: by_rank[comm.rank] for name, by_rank in cost.peak_bytes.items()}
            assert held == formula, f"holds {held}, formula {formula}"
            assert meter.bytes == 0, f"{meter.bytes} bytes still saved after the step"
            if isinstance(comm, LocalComm):
                worked = comm.trace.busy - busy
                assert abs(worked - cost.busy[comm.rank]) <= 1e-9 * max(cost.busy), (
                    f"rank {comm.rank} computed {worked} s, formula {cost.busy[comm.rank]}"
                )
