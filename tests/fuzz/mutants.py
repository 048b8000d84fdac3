"""Does the generator find mistakes? Every mutant of the tests is hunted with up to 500 draws.

    python -m tests.fuzz mutants                  # all of them, how many draws each took
    python -m tests.fuzz mutants --only zero      # those whose name has "zero"

The mutants are those of tests/parallel: functions that patch one thing with ``monkeypatch``. The
oracle trains without the patch. The rows that are drawn are those of the mutant's family, or all if
it belongs to none. ``OUTSIDE`` lists the mutants of what runs of training do not show, and why.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import tests.parallel
from minidist.collectives import ALL_REDUCE
from minidist.collectives.operations import ANY_ALL_REDUCE
from tests.fuzz.rows import ROWS
from tests.fuzz.runs import Run, draw
from tests.fuzz.training import Refused, compare, serial

DRAWS = 500
TESTS = Path(__file__).parents[1]
sys.path += [str(TESTS), str(TESTS / "collectives")]  # as pytest is told in pyproject.toml
FAMILIES = {  # of a module with mutants: the beginnings of the rows that can show them
    "averaging": ("easgd",),
    "data_parallel": ("data_parallel",),
    "mesh": ("mesh",),
    "pipedream": ("pipeline/pipedream",),
    "pipeline": ("pipeline",),
    "server": ("parameter_server",),
    "stale_parameter_server": ("parameter_server/ssp", "parameter_server/async"),
    "backup_workers": ("parameter_server/backup",),
    "tensor": ("tensor", "mesh"),
    "zero": ("zero",),
    "gradient_sync": ("pipeline/copies", "mesh"),
    "talking_less": ("compression", "local_sgd", "gossip"),
    "clipping": ("zero", "data_parallel", "pipeline/copies", "mesh"),
}
COMPARED = "at the limit that is compared with serial training it changes nothing: "
FAILS = "it is about ranks that fail"
SAME = "every rank gets the same batches here"
LATE = "the numbers are right, and no formula knows the time"
ASYNC = "it is about asynchronous runs, whose numbers depend on the order"
OUTSIDE = {
    "nobody_compares": SAME,
    "only_indices_are_compared": SAME,
    "steps_never_counted": SAME,
    "launches_at_the_end": LATE,
    "missing_shard_not_made_up_for": FAILS,
    "the_dead_workers_last_gradient_stays": FAILS,
    "top_k_without_feedback": COMPARED + "nothing is owed",
    "sign_that_owes_the_common_size": "sign has no exact limit",
    "power_sgd_that_owes_after_the_sum": COMPARED + "nothing is owed",
    "residual_forgotten": "no compressor that loses something is drawn for servers",
    "one_compressor_for_all_servers": "no compressor that loses something is drawn for servers",
    "worker_beside_its_server_does_not_wait_for_it": ASYNC,
    "bound_off_by_one": ASYNC,
    "bound_counts_from_the_fastest": ASYNC,
    "staleness_not_reset_by_a_pull": ASYNC,
    "late_gradients_count_in_the_next_clock": COMPARED + "nobody is late without backups",
    "backup_takes_whatever_comes": COMPARED + "nobody is late without backups",
    "sum_not_scaled_up": COMPARED + "nobody is left out without backups",
    "test_stale_parameter_server.push_applied_twice": "no push is repeated where nothing is lost",
    "boundary_overlaps_by_one_element": "the formula cuts the keys by the same function",
    "evaluated_with_its_own": "no task has running averages that differ over ranks",
    "never_released": "a run ends with its evaluation",
    "own_arrays_are_not_saved": COMPARED + "no rank has arrays of its own",
    "steps_forgotten": COMPARED + "nothing depends on the number of a step",
    "gradients_kept": COMPARED + "with one microbatch no gradient is kept",
    "one_too_many_awaited": COMPARED + "without backups all are awaited",
    "no_stashing": COMPARED + "with one microbatch no weights are kept",
    "one_microbatch_too_late": COMPARED + "there is one microbatch",
    "alpha_not_shared_by_the_workers": "elastic averaging has no exact limit",
    "meets_a_step_too_early": "elastic averaging has no exact limit",
    "gradient_of_the_global_mean": "elastic averaging has no exact limit",
    "worker_jumps_to_the_centre": "elastic averaging has no exact limit",
    "centre_takes_one_worker_after_the_other": "elastic averaging has no exact limit",
}


@dataclass(frozen=True)
class Hunted:
    """A mutant, by module and name; ``rows``: the beginnings of the rows that are drawn."""

    module: str
    name: str
    patch: Callable[[pytest.MonkeyPatch], object]
    rows: tuple[str, ...]

    @property
    def outside(self) -> str | None:
        """Why it is not hunted, by its name, or by its file and name."""
        return OUTSIDE.get(self.name) or OUTSIDE.get(f"{self.module.split('.')[-1]}.{self.name}")

    def __str__(self) -> str:
        return f"{self.module.removeprefix('tests.parallel.')}.{self.name}"


def all_mutants() -> Iterator[Hunted]:
    """Every function of tests/parallel whose only parameter is ``monkeypatch``, but the tests."""
    for found in pkgutil.walk_packages(tests.parallel.__path__, "tests.parallel."):
        if found.ispkg or not found.name.rpartition(".")[2].startswith("test_"):
            continue
        module = importlib.import_module(found.name)
        rows = [of for key, of in FAMILIES.items() if key in found.name]
        for name, function in vars(module).items():
            if not inspect.isfunction(function) or function.__module__ != found.name:
                continue
            if list(inspect.signature(function).parameters) != ["monkeypatch"]:
                continue
            if not name.startswith("test_"):
                yield Hunted(found.name, name, function, rows[-1] if rows else ("",))


def of_collectives() -> Iterator[Hunted]:
    """The mutants of all-reduces: the ring is everywhere, the rest is drawn by name."""
    from tests.collectives.test_mutants import MUTANTS

    for mutant, function, name in MUTANTS:
        if not name.startswith("all_reduce/"):
            continue

        def patch(monkeypatch: pytest.MonkeyPatch, mutant=mutant, function=function) -> None:
            module = importlib.import_module(mutant.module)
            true, wrong = getattr(module, function), getattr(mutant.load(), function)
            monkeypatch.setattr(module, function, wrong)
            for table in (ALL_REDUCE, ANY_ALL_REDUCE):  # a name is looked up in the second
                for key, algorithm in table.items():
                    if algorithm is true:
                        monkeypatch.setitem(table, key, wrong)

        rows = ("",) if name.endswith("/ring") else ("data_parallel/ring",)
        yield Hunted(f"collectives.{name}", mutant.what, patch, rows)


def shows(mutant: Hunted, run: Run) -> bool:
    """Whether this run finds something wrong with the mutant; AssertionError if without it, too."""
    try:
        expected = serial(run)
    except Refused:
        return False
    with pytest.MonkeyPatch.context() as patch:
        mutant.patch(patch)
        try:
            compare(run, expected)
        except Refused:
            return False
        except Exception:
            pass
        else:
            return False
    compare(run, expected)
    return True


def hunt(mutant: Hunted, draws: int = DRAWS, size: int = 12) -> int | None:
    """How many draws until the mutant shows; None if it does not."""
    keys = [key for key in ROWS if key.startswith(mutant.rows)]
    for seed in range(draws):
        if shows(mutant, draw(np.random.default_rng(seed), 1 + seed % size, keys)):
            return seed + 1
    return None


def hunt_all(only: str = "") -> list[str]:
    """Print how many draws each mutant took; returns those that survived."""
    survivors = []
    for mutant in (*of_collectives(), *all_mutants()):
        if only not in str(mutant):
            continue
        if mutant.outside:
            print(f"{mutant}: not hunted, {mutant.outside}", flush=True)
            continue
        took = hunt(mutant)
        said = f"caught after {took} draws" if took else f"SURVIVED {DRAWS} draws"
        print(f"{mutant}: {said}", flush=True)
        survivors += [] if took else [str(mutant)]
    return survivors
