"""What tests of checkpoints have in common: small runs that save and go on."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from minidist import LocalWorld, launch
from minidist.checkpoint import Checkpoints
from minidist.data import Batches
from minidist.engine.array import defaults
from minidist.optim import AdamW
from tests.parallel.checks import Setting, make

SETTING = Setting(widths=(12, 9, 9, 6, 5), optimizer=lambda: AdamW(1e-2))  # a square weight too


def method_of(key: str, comm, setting: Setting = SETTING):
    with defaults(dtype=setting.dtype):
        return make(key, comm, setting)


def batches_of(setting: Setting = SETTING) -> Batches:
    return Batches(setting.dataset, setting.batch, setting.seed)


def run(
    key: str,
    ranks: int,
    folder: Path,
    stop: int,
    every: int = 2,
    setting: Setting = SETTING,
    **options,
):
    """Go on from what is in the folder to step ``stop``; (first step, losses, parameters)."""

    def body(comm):
        with defaults(dtype=setting.dtype):
            method, batches = make(key, comm, setting), batches_of(setting)
            with Checkpoints(folder, method, batches, **options) as checkpoints:
                start, losses = checkpoints.resume(), []
                for step in range(start, stop):
                    losses.append(method.step(batches[step]))
                    if (step + 1) % every == 0:
                        checkpoints.save(step + 1)
            return start, losses, method.parameters()

    return launch(body, ranks, LocalWorld())[0]


def on_ranks(ranks: int, function, *args):
    """``function(comm, *args)`` on ranks of the local world, in float64."""
    with defaults(dtype="float64"):
        return launch(partial(_call, function, args), ranks, LocalWorld())


def _call(function, args, comm):
    return function(comm, *args)


def gap(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """The largest relative difference of parameters."""
    return max(
        float(np.abs(got[name] - values).max() / np.abs(values).max())
        for name, values in expected.items()
    )
