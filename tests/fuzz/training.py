"""Random training runs by every method, against serial training: runs.py draws them.

Losses, parameters, buffers and evaluation must equal
serial training, to 1e-10 in float64. They must have the same bits on every rank, and messages,
bytes and memory must be as predicted. What a method refuses is counted by reason.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np

from minidist import LocalWorld, launch
from minidist.comm.comm import Comm
from minidist.data import Batch
from minidist.engine.array import defaults
from minidist.nn import Module
from minidist.parallel import Method, Serial
from minidist.parallel.evaluation import evaluate
from minidist.parallel.pipeline.prover import ScheduleError
from tests.fuzz.rows import ROWS
from tests.fuzz.runs import Part, Run, draw
from tests.fuzz.tasks import Task

Random = np.random.Generator
TOLERANCE = 1e-10
FLOOR = 1e-3  # of a size: below it gaps are absolute


class Refused(Exception):
    """A method does not take what was drawn."""


@dataclass
class Found:
    """What a rank has after its steps."""

    losses: list[float]
    parameters: dict[str, np.ndarray]
    buffers: dict[str, np.ndarray]
    state: dict[str, np.ndarray]
    evaluated: tuple[float, float]


def model_of(task: Task, comm: Comm) -> Module:
    model = task.build(comm=comm)
    return model.freeze(task.frozen) if task.frozen else model


def train(comm: Comm, run: Run, part: Part, state: dict[str, np.ndarray] | None) -> Found:
    """The steps of a part, on this rank. ``Refused`` if the method does not take them."""
    with defaults(dtype="float64"):
        row, task, optimizer = ROWS[part.key], run.task, run.rule.make()
        options = part.options | ({} if run.clip is None else {"clip": run.clip})
        try:
            model, loss = model_of(task, comm), task.loss()
            method = row.make(model, loss, optimizer, comm, run.seed, **options)
        except ScheduleError:  # no run that is drawn has programs that cannot run
            raise
        except (TypeError, ValueError) as error:  # Unsupported is a TypeError
            raise Refused(f"{type(error).__name__}: {error}") from error
        if row.limit != "first" and method.why_inexact:
            raise Refused(method.why_inexact)
        if state is not None:
            method.load(state)
        losses = []
        for step in part.steps:
            before(run, method, step)
            try:
                losses.append(stepped(method, task, run.batches[step], comm))
            except ValueError as error:
                if "probabilities of classes need all" not in str(error):
                    raise
                raise Refused(f"ValueError: {error}") from error
        found = Found(losses, method.parameters(), method.buffers(), method.state(), (0.0, 0.0))
        found.evaluated = method.evaluate(task.dataset, 11)
        return found


def before(run: Run, method: Method, step: int) -> None:
    """What a user changes before a step; also in a method that goes on from a state."""
    run.rule.before(method.optimizer, step)
    if run.later is not None and step >= run.later[0]:
        try:
            method.clip = run.later[1]
        except TypeError as error:
            raise Refused(f"Unsupported: {error}") from error


def stepped(method: Method, task: Task, indices: tuple[int, ...], comm: Comm) -> float:
    """A step, whose messages, bytes and memory are as predicted."""
    batch: Batch = task.dataset.batch(indices)
    if task.kind == "sync":  # whose messages nobody predicts
        return method.step(batch)
    sent, machine = comm.trace.sent, comm.machine  # type: ignore[attr-defined]
    comm.barrier()
    before, start = (sent.messages, sent.nbytes), comm.time()
    cost = method.cost(batch, machine)
    loss = method.step(batch)
    seconds = comm.time() - start
    got = sent.messages - before[0], sent.nbytes - before[1]
    expected = cost.messages[comm.rank], cost.nbytes[comm.rank]
    assert got == expected, f"sent (messages, bytes) {got}, formula {expected}"
    held = {kind: sum(a.nbytes for a in arrays) for kind, arrays in method.arrays().items()}
    formula = {kind: cost.peak_bytes[kind][comm.rank] for kind in held}
    if len(batch) < comm.size:  # a rank without samples may not have begun
        held.pop("optimizer"), formula.pop("optimizer")
    assert held == formula, f"holds {held}, formula {formula}"
    if cost.seconds is not None and task.kind in ("mlp", "gpt", "cnn"):  # whose costs are true
        assert seconds <= cost.seconds * (1 + 1e-9), f"took {seconds} s, formula {cost.seconds}"
    return loss


def check(random: Random, size: int, keys: list[str] | None = None) -> str:
    """One run: AssertionError if it differs from serial; else "row", or "row, refused: why"."""
    return check_run(draw(random, size, list(ROWS) if keys is None else keys))


def check_run(run: Run) -> str:
    name = run.parts[0].key
    try:
        compare(run)
    except Refused as why:
        return f"{name}, refused: {why}"
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error}\n{run}") from error
    return name


def compare(run: Run, expected: list[Found] | None = None) -> None:
    """AssertionError if a run differs from what serial training found after each step."""
    limit, state, done = ROWS[run.parts[0].key].limit, None, 0
    expected = expected or serial(run)
    for part in run.parts:
        ranks = launch(
            lambda comm, p=part, s=state: train(comm, run, p, s), part.ranks, LocalWorld()
        )
        first, state = ranks[0], ranks[0].state
        for rank, other in enumerate(ranks[1:], 1):
            assert other.losses == first.losses, (
                f"rank {rank}: losses {other.losses}, {first.losses}"
            )
            same = np.array_equal(other.evaluated, first.evaluated, equal_nan=True)
            assert same, f"rank {rank} evaluates to {other.evaluated}, not {first.evaluated}"
            for what in ("parameters", "buffers"):
                for key, values in getattr(first, what).items():
                    same = np.array_equal(getattr(other, what)[key], values)
                    assert same, f"rank {rank} has another {key}"
        wanted = expected[len(part.steps) + done - 1]
        done += len(part.steps)
        if limit == "first":
            if part.steps[0] == 0:
                near("loss of step 0", first.losses[:1], wanted.losses[:1])
            assert all(np.isfinite(values).all() for values in first.parameters.values())
            near("evaluated", first.evaluated, by_hand(run.task, first))
            continue
        near("losses", first.losses, [wanted.losses[step] for step in part.steps])
        assert list(first.parameters) == list(wanted.parameters), "other parameters"
        for what in ("parameters", "buffers"):
            for key, values in getattr(wanted, what).items():
                near(f"{what} {key} after step {part.steps[-1]}", getattr(first, what)[key], values)
        near("evaluated", first.evaluated, wanted.evaluated)


def by_hand(task: Task, found: Found) -> tuple[float, float]:
    """(mean loss, accuracy) of the parameters and buffers that a method gave, on one rank."""

    def alone(comm: Comm) -> tuple[float, float]:
        with defaults(dtype="float64"):
            model = task.build(comm=comm).init(0).load(found.parameters | found.buffers)
            return evaluate(model, task.loss(), task.dataset, comm, model=model)

    return launch(alone, 1, LocalWorld())[0]


def near(what: str, got: Any, expected: Any) -> None:
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape, f"{what}: shape {got.shape}, serial {expected.shape}"
    if not np.isfinite(expected).all():
        np.testing.assert_array_equal(np.isnan(got), np.isnan(expected), what)
        got, expected = got[np.isfinite(expected)], expected[np.isfinite(expected)]
    bound = TOLERANCE * max(FLOOR, float(np.abs(expected).max(initial=0)))
    gap = float(np.abs(got - expected).max(initial=0))
    assert gap <= bound, f"{what} differs from serial by {gap}, allowed {bound}"


def serial(run: Run) -> list[Found]:
    """After each step, by the oracle: one rank, the whole batch, never saved."""

    def alone(comm: Comm) -> list[Found]:
        with defaults(dtype="float64"):
            task, optimizer, found = run.task, run.rule.make(), list[Found]()
            model, losses = model_of(task, comm), list[float]()
            method = Serial(model, task.loss(), optimizer, comm, run.seed, clip=run.clip)
            for step, indices in enumerate(run.batches):
                before(run, method, step)
                try:
                    losses.append(method.step(task.dataset.batch(indices)))
                except ValueError as error:
                    if "are ignored" not in str(error):
                        raise
                    raise Refused(f"ValueError: {error}") from error
                held = method.parameters(), method.buffers(), {}
                found.append(Found([*losses], *held, method.evaluate(task.dataset, 11)))
            return found

    return launch(alone, 1, LocalWorld())[0]


class Tally:
    """The check, and how often each row ran, and why it refused."""

    def __init__(self, keys: list[str] | None = None) -> None:
        self.keys = keys
        self.ran: Counter[str] = Counter()
        self.refused: dict[str, Counter[str]] = defaultdict(Counter)

    def __call__(self, random: Random, size: int) -> str:
        said = check(random, size, self.keys)
        name, _, why = said.partition(", refused: ")
        if why:
            self.refused[name][re.sub(r"\d+", "n", why)[:110]] += 1
        else:
            self.ran[name] += 1
        return said

    def __str__(self) -> str:
        lines = []
        for key in sorted({*self.ran, *self.refused}):
            refused = self.refused[key]
            lines.append(f"{key:32} ran {self.ran[key]:5}, refused {refused.total():5}")
            lines += [f"    {count:5}  {why}" for why, count in refused.most_common()]
        return "\n".join(lines)

    def rarely(self) -> list[str]:
        """Rows that ran in less than a third of their draws (of 12 or more)."""
        drawn = {
            key: self.ran[key] + self.refused[key].total() for key in {*self.ran, *self.refused}
        }
        return sorted(key for key, of in drawn.items() if of >= 12 and of > 3 * self.ran[key])
