"""The process that runs an answer: started by ``marker.py``, watched by ``watch.py``.

    python -m minidist.exercises.child ring mine.py cases.json token results.jsonl

For each case of ``cases.json`` it writes a line ``{"start": number}`` and then one with what every
rank measured, or with the error. So the marker knows which case never ended. Each line carries the
token of a file that is removed before the answer is loaded: the marker reads no line without it.
What the answer prints goes to stdout, where nobody looks for marks.
"""

from __future__ import annotations

import ast
import gc
import json
import os
import sys
import traceback
import tracemalloc
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from json import dumps  # an answer may replace json.dumps
from pathlib import Path
from tracemalloc import get_traced_memory
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from minidist.comm.launcher import launch
from minidist.comm.local.world import LocalWorld
from minidist.comm.mpi.world import MpiWorld
from minidist.exercises.exercise import Case, Exercise
from minidist.exercises.names import EXERCISES
from minidist.exercises.replaced import Surroundings
from minidist.exercises.watch import Counts, StudentComm, Watch

MEMORY = 4 << 30  # bytes that a process of an answer may hold, its libraries' included
# Attributes by which a function or a frame leads to what others have defined. No answer needs one.
LEADS_OUT = {
    "__globals__", "__closure__", "__code__", "__subclasses__", "__builtins__", "__traceback__",
    "tb_frame", "gi_frame", "f_back", "f_globals", "f_locals", "f_builtins", "_getframe",
}  # fmt: skip


def load(exercise: Exercise, path: Path, watch: Watch) -> SimpleNamespace:
    """The functions that the exercise wants, from that file and no other."""
    tree = ast.parse(path.read_bytes(), str(path))
    for node in ast.walk(tree):
        name = getattr(node, "attr", None) or getattr(node, "value", None)
        if isinstance(name, str) and name in LEADS_OUT:
            watch.tried(f"it uses {name}, which leads out of the answer into the marker")
    code = compile(tree, str(path), "exec")
    module = ModuleType("answer")
    module.__file__ = str(path)
    sys.modules["answer"] = module  # dataclasses look their module up
    with watch.over():
        exec(code, vars(module))
    missing = [name for name in exercise.functions if not callable(getattr(module, name, None))]
    if missing:
        raise NameError(f"the file has to define {', '.join(missing)}, under just this name")
    return SimpleNamespace(**{name: getattr(module, name) for name in exercise.functions})


def load_for_each_rank(exercise: Exercise, path: Path, watch: Watch, ranks: int) -> list[Any]:
    """The answer once for each rank of this process: real ranks share no variables of a module.

    What the file prints where it is loaded is printed once.
    """
    answers = [load(exercise, path, watch)]
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        return answers + [load(exercise, path, watch) for _ in range(ranks - 1)]


def run_case(
    exercise: Exercise, answers: Sequence[Any], case: Case, watch: Watch
) -> dict[str, Any]:
    """What all ranks measured: {"ranks": [...], "peak": bytes, "seconds": virtual}."""
    world = LocalWorld() if case.world == "local" else MpiWorld()

    given = [exercise.prepare(rank, case) for rank in range(case.ranks)]

    def on_a_rank(comm: Any) -> dict[str, Any]:
        counts = Counts()
        answer = answers[comm.rank if case.world == "local" else 0]
        found = exercise.run(StudentComm(comm, counts, watch), answer, case, given[comm.rank])
        counted = {"messages": counts.messages, "bytes": counts.nbytes, "log": counts.log}
        return counted | found

    with watch.over():
        tracemalloc.start()  # from here on: what the answer holds besides what it was given
        try:
            ranks = launch(on_a_rank, case.ranks, world)
            peak = get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    return {"ranks": plain(ranks), "peak": peak, "seconds": getattr(world, "seconds", None)}


def plain(value: Any) -> Any:
    """The same for JSON: arrays as lists, numbers as Python's; floats stay exact.

    Of what is no data, as of an object that an answer returns by mistake, its repr is left.
    """
    if isinstance(value, dict):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist() if value.dtype.kind in "biuf" else plain(value.tolist())
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)


def run_all(
    exercise: Exercise, path: Path, cases: Sequence[tuple[int, Case]], tell: Callable[..., None]
) -> None:
    """Run numbered cases; ``tell`` is called before and after each."""
    watch = Watch(exercise.forbidden, path)
    around = Surroundings()
    ranks = max((case.ranks for _, case in cases if case.world == "local"), default=1)
    try:
        answers = load_for_each_rank(exercise, path, watch, ranks)
    except BaseException as error:
        tell({"load": describe(error, path), "unsolved": unsolved(error), "tricks": watch.tricks})
        return
    gc.freeze()  # what is here already need not be looked through whenever garbage is collected
    try:
        run_each(exercise, path, answers, cases, watch, tell)
    finally:
        gc.unfreeze()
    for name in around.replaced():
        watch.tried(f"it replaces {name}")
    tell({"tricks": watch.tricks})


def run_each(
    exercise: Exercise,
    path: Path,
    answers: Sequence[Any],
    cases: Sequence[tuple[int, Case]],
    watch: Watch,
    tell: Callable[..., None],
) -> None:
    for number, case in cases:
        tell({"start": number})
        try:
            found = run_case(exercise, answers, case, watch)
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
    said = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError):
        said += f" (a process of an answer may hold {MEMORY >> 30} GiB)"
    if lines:
        return f"{said}, line {lines[-1].lineno}: {lines[-1].line}"
    if frames and isinstance(error, (TypeError, ValueError, AttributeError, IndexError, KeyError)):
        return f"{said} (where the answer was called, or what it returned was used)"
    return said


def limit_memory() -> None:
    """An answer that fills the memory gets a MemoryError, before the computer has none left."""
    with suppress(ImportError, ValueError, OSError):  # not on every system
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, hard))


def main(arguments: Sequence[str]) -> None:
    from minidist.exercises.exercise import find

    name, answer, cases, secret, results = arguments
    sys.argv[1:] = []  # the answer need not know where the results go
    listed = [
        (number, Case(**settings)) for number, settings in json.loads(Path(cases).read_text())
    ]
    first = listed[0][1].world == "local" or MpiWorld().rank == 0
    token = ""
    if first:
        token = Path(secret).read_text()
        os.remove(secret)
    limit_memory()
    with open(results if first else os.devnull, "a") as file:

        def tell(line: dict[str, Any]) -> None:
            file.write(dumps({"token": token, **line}) + "\n")
            file.flush()

        run_all(find(name, EXERCISES), Path(answer), listed, tell)


if __name__ == "__main__":
    main(sys.argv[1:])
