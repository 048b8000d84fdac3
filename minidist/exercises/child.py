"""The process that runs an answer: started by ``marker.py``, watched by ``watch.py``.

    python -m minidist.exercises.child ring mine.py cases.json results.jsonl

For each case of ``cases.json`` it writes a line ``{"start": number}`` and then one with what every
rank measured, or with the error. So the marker knows which case never ended. What the answer prints
goes to stdout, where nobody looks for marks.
"""

from __future__ import annotations

import gc
import json
import sys
import traceback
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from minidist.comm.launcher import launch
from minidist.comm.local.world import LocalWorld
from minidist.comm.mpi.world import MpiWorld
from minidist.exercises.exercise import Case, Exercise
from minidist.exercises.names import EXERCISES
from minidist.exercises.watch import Counts, StudentComm, Watch


class Unsolved(Exception):
    """The stub is still a stub."""


def load(exercise: Exercise, path: Path, watch: Watch) -> SimpleNamespace:
    """The functions that the exercise wants, from that file and no other."""
    code = compile(path.read_text(), str(path), "exec")
    module = ModuleType("answer")
    module.__file__ = str(path)
    sys.modules["answer"] = module  # dataclasses look their module up
    with watch.over():
        exec(code, vars(module))
    missing = [name for name in exercise.functions if not callable(getattr(module, name, None))]
    if missing:
        raise ValueError(f"{path} does not define {', '.join(missing)}")
    return SimpleNamespace(**{name: getattr(module, name) for name in exercise.functions})


def run_case(exercise: Exercise, answer: Any, case: Case, watch: Watch) -> dict[str, Any]:
    """What all ranks measured: {"ranks": [...], "peak": bytes, "seconds": virtual}."""
    world = LocalWorld() if case.world == "local" else MpiWorld()

    given = [exercise.prepare(rank, case) for rank in range(case.ranks)]

    def on_a_rank(comm: Any) -> dict[str, Any]:
        counts = Counts()
        found = exercise.run(StudentComm(comm, counts, watch), answer, case, given[comm.rank])
        counted = {"messages": counts.messages, "bytes": counts.nbytes, "log": counts.log}
        return counted | found

    with watch.over():
        tracemalloc.start()  # from here on: what the answer holds besides what it was given
        try:
            ranks = launch(on_a_rank, case.ranks, world)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    return {"ranks": plain(ranks), "peak": peak, "seconds": getattr(world, "seconds", None)}


def plain(value: Any) -> Any:
    """The same for JSON: arrays as lists, numbers as Python's; floats stay exact."""
    if isinstance(value, dict):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def run_all(
    exercise: Exercise, path: Path, cases: Sequence[tuple[int, Case]], tell: Callable[..., None]
) -> None:
    """Run numbered cases; ``tell`` is called before and after each."""
    watch = Watch(exercise.forbidden)
    try:
        answer = load(exercise, path, watch)
    except BaseException as error:
        tell({"load": describe(error, path), "unsolved": unsolved(error), "tricks": watch.tricks})
        return
    gc.freeze()  # what is here already need not be looked through whenever garbage is collected
    try:
        run_each(exercise, path, answer, cases, watch, tell)
    finally:
        gc.unfreeze()


def run_each(
    exercise: Exercise,
    path: Path,
    answer: Any,
    cases: Sequence[tuple[int, Case]],
    watch: Watch,
    tell: Callable[..., None],
) -> None:
    for number, case in cases:
        tell({"start": number})
        try:
            found = run_case(exercise, answer, case, watch)
            tell({"case": number, **found, "tricks": watch.tricks})
        except BaseException as error:
            tell(
                {
                    "case": number,
                    "error": describe(error, path),
                    "unsolved": unsolved(error),
                    "tricks": watch.tricks,
                }
            )
            if unsolved(error):
                return


def unsolved(error: BaseException) -> bool:
    return isinstance(error, NotImplementedError)


def describe(error: BaseException, path: Path) -> str:
    """The error, and the line of the answer in which it came."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame for frame in frames if Path(frame.filename) == path]
    where = f", line {lines[-1].lineno}: {lines[-1].line}" if lines else ""
    return f"{type(error).__name__}: {error}{where}"


def main(arguments: Sequence[str]) -> None:
    from minidist.exercises.exercise import find

    name, answer, cases, results = arguments
    sys.argv[1:] = []  # the answer need not know where the results go
    listed = [
        (number, Case(**settings)) for number, settings in json.loads(Path(cases).read_text())
    ]
    first = listed[0][1].world == "local" or MpiWorld().rank == 0
    with open(results if first else "/dev/null", "a") as file:

        def tell(line: dict[str, Any]) -> None:
            print(json.dumps(line), file=file, flush=True)

        run_all(find(name, EXERCISES), Path(answer), listed, tell)


if __name__ == "__main__":
    main(sys.argv[1:])
