"""``minidist check ring mine.py``: run an answer in processes of its own, and mark what it did.

The answer's code runs in a child process (``child.py``), which only measures. Here, in a process
that the answer cannot reach, the measurements are held against the reference: results against
NumPy's, counts and memory against the formula of the exercise, never against the student's own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from secrets import token_hex
from threading import Thread
from typing import Any

from minidist.comm.launcher import find_mpiexec, mpi_environment
from minidist.exercises.exercise import Case, Exercise, Verdict, find
from minidist.exercises.names import EXERCISES
from minidist.run import leftovers

LIMIT = 10.0  # seconds for the cases of one process; an endless loop ends then
LOST = "no result of it came back: its process ended before, or somebody removed the result"
PRINTED = 100_000  # bytes of what an answer prints are kept; the rest is dropped
HONEST = "own work"  # the mark that every exercise has besides its own


@dataclass
class Mark:
    """One line of a report: points reached of ``points``, and why not all."""

    name: str
    points: int
    cases: int = 0
    wrong: list[tuple[str, str]] = field(default_factory=list)  # (case, what is wrong)

    @property
    def reached(self) -> int:
        """All points, or none: a mark says that something holds in every case."""
        return self.points if self.cases and not self.wrong else 0


@dataclass
class Report:
    """What became of an answer."""

    exercise: str
    title: str
    file: Path
    marks: list[Mark]
    unsolved: bool = False
    printed: str = ""
    skipped: str = ""

    @property
    def points(self) -> int:
        return sum(mark.points for mark in self.marks)

    @property
    def reached(self) -> int:
        return sum(mark.reached for mark in self.marks)

    @property
    def passed(self) -> bool:
        return self.reached == self.points


def check(
    name: str,
    file: str | Path,
    seed: int = 0,
    worlds: Sequence[str] = ("local", "mpi"),
    limit: float = LIMIT,
) -> Report:
    """Mark the answer in ``file`` to the exercise ``name``.

    ``seed`` draws the data and the hidden cases. ``worlds``: "local", "mpi"; the second is left
    out, and the report says so, where there is no mpiexec. ``limit``: seconds that one process may
    take for its cases; more on a machine that is busy. Raises ValueError for an unknown exercise, a
    negative seed or a limit that is not above 0, and FileNotFoundError if there is no such file.
    """
    exercise, path = find(name, EXERCISES), Path(file).resolve()
    if seed < 0:
        raise ValueError(f"the seed is a whole number from 0 on, not {seed}")
    if not limit > 0:
        raise ValueError(f"the limit is a number of seconds above 0, not {limit}")
    if not path.is_file():
        what = "is a folder, and a Python file is wanted" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{path} {what}")
    cases = [case for case in exercise.cases(seed) if case.world in worlds]
    skipped = ""
    if find_mpiexec() is None and any(case.world == "mpi" for case in cases):
        cases = [case for case in cases if case.world == "local"]
        skipped = 'no mpiexec here: real MPI ranks were not tried (pip install "minidist[mpich]")'
    lines: list[dict[str, Any]] = []
    printed = ""
    for _, several in groupby(enumerate(cases), key=lambda pair: (pair[1].world, _width(pair[1]))):
        found, said = _in_processes(exercise, path, list(several), limit)
        lines += found
        printed += said
        if any(line.get("unsolved") or "load" in line for line in found):
            break
    report = judge(exercise, path, cases, lines)
    report.printed, report.skipped = printed, skipped
    return report


def check_here(name: str, file: str | Path, seed: int = 0) -> Report:
    """The same in this process and the local world alone: quick, for answers that can be trusted.

    Nothing ends an endless loop.
    """
    from minidist.exercises.child import run_all

    exercise, path = find(name, EXERCISES), Path(file).resolve()
    cases = [case for case in exercise.cases(seed) if case.world == "local"]
    lines: list[dict[str, Any]] = []
    run_all(exercise, path, list(enumerate(cases)), lines.append)
    return judge(exercise, path, cases, lines)


def _width(case: Case) -> int:
    """How many processes a case needs: of one world and width, cases run one after the other."""
    return case.ranks if case.world == "mpi" else 0


def judge(
    exercise: Exercise, path: Path, cases: Sequence[Case], lines: Iterable[dict[str, Any]]
) -> Report:
    """The report, from what the child processes wrote."""
    marks = {name: Mark(name, points) for name, points in exercise.marks.items()}
    honest = Mark(HONEST, 0, cases=1)
    report = Report(exercise.name, exercise.title, path, [*marks.values(), honest])
    held: set[tuple[str, str]] = set()  # (mark, case), whatever the data
    for line in lines:
        for trick in line.get("tricks", ()):
            if ("", trick) not in honest.wrong:
                honest.wrong.append(("", trick))
        report.unsolved = report.unsolved or bool(line.get("unsolved"))
        if "load" in line or "error" in line:
            where = str(cases[line["case"]]) if "case" in line else "loading the file"
            for mark in marks.values():
                mark.cases += 1
                mark.wrong.append((where, line.get("load") or line["error"]))
        elif "case" in line:
            case = cases[line["case"]]
            ranks = [rank | {"peak": line["peak"], "seconds": line["seconds"]}
                     for rank in line["ranks"]]  # fmt: skip
            for name, wrong in _verdicts(exercise, case, ranks):
                marks[name].cases += 1
                if wrong is None:
                    held.add((name, str(case)))
                elif (name, str(case)) in held:
                    wrong += "; with other data of these sizes it was right: does something stay "
                    wrong += "from one call to the next?"
                if wrong is not None:
                    marks[name].wrong.append((str(case), wrong))
    if honest.wrong:  # what was copied is worth nothing
        for mark in marks.values():
            mark.wrong.append(("", f"not marked: {honest.wrong[0][1]}"))
    return report


def _verdicts(exercise: Exercise, case: Case, ranks: list[dict[str, Any]]) -> Iterator[Verdict]:
    """What the exercise says; if what came back is no such thing at all, no mark holds."""
    try:
        yield from exercise.judge(case, ranks)
    except Exception as error:
        why = f"what the answer returned or left behind cannot be read: {error}"
        yield from ((name, why) for name in exercise.marks)


def _in_processes(
    exercise: Exercise, path: Path, cases: list[tuple[int, Case]], limit: float
) -> tuple[list[dict[str, Any]], str]:
    """Run numbered cases of one world; after one that never ends, go on with the next."""
    lines: list[dict[str, Any]] = []
    printed = ""
    while cases:
        found, said, ended = _in_a_process(exercise, path, cases, limit)
        printed += said
        lines += [line for line in found if "start" not in line]
        started = [line["start"] for line in found if "start" in line]
        done = {line["case"] for line in found if "case" in line}
        if not ended and not started:
            lines.append({"load": f"the file was not loaded within {limit:g} seconds"})
            break
        stuck = [number for number in started if number not in done]
        if stuck:
            number = stuck[0]
            why = (
                f"it did not end within {limit:g} seconds"
                if not ended
                else "its process ended in the middle, after printing "
                + (repr(said.strip()[-200:]) if said.strip() else "nothing")
            )
            lines.append({"case": number, "error": why})
            cases = [pair for pair in cases if pair[0] > number]
            if sum("error" in line for line in lines) >= 3:
                break  # it has been seen often enough
        else:
            if not any(line.get("unsolved") or "load" in line for line in found):
                lost = [number for number, _ in cases if number not in done]
                lines += [{"case": number, "error": LOST} for number in lost]
            break
    return lines, printed


def _in_a_process(
    exercise: Exercise, path: Path, cases: list[tuple[int, Case]], limit: float
) -> tuple[list[dict[str, Any]], str, bool]:
    """(the lines that the child wrote, what it printed, whether it ended by itself)."""
    world, ranks = cases[0][1].world, cases[0][1].ranks
    with tempfile.TemporaryDirectory() as folder, leftovers.removed():
        listed, results = Path(folder, "cases.json"), Path(folder, "results.jsonl")
        secret, token = Path(folder, "token"), token_hex()
        secret.write_text(token)
        listed.write_text(json.dumps([(number, asdict(case)) for number, case in cases]))
        results.touch()
        command = [sys.executable, "-m", "minidist.exercises.child"]
        if world == "mpi":
            command = [str(find_mpiexec()), "-n", str(ranks), *command]
        process = subprocess.Popen(
            [*command, exercise.name, str(path), str(listed), str(secret), str(results)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=mpi_environment(),
            start_new_session=True,
        )
        printed: list[bytes] = []
        reader = Thread(target=_keep, args=(process.stdout, printed), daemon=True)
        reader.start()
        try:
            process.wait(limit)
            ended = True
        except subprocess.TimeoutExpired:
            ended = False
        with suppress(ProcessLookupError):  # with all that it started
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reader.join(5)
        return list(_read(results, token)), b"".join(printed).decode(errors="replace"), ended


def _keep(pipe: Any, printed: list[bytes]) -> None:
    """Read all that a process prints, and keep the beginning of it."""
    with pipe:
        while some := pipe.read1(1 << 16):
            if sum(map(len, printed)) < PRINTED:
                printed.append(some)


def _read(results: Path, token: str) -> Iterator[dict[str, Any]]:
    """The lines of a child, without those that somebody else wrote between them."""
    for line in results.read_text(errors="replace").splitlines():
        try:
            found = json.loads(line)
        except json.JSONDecodeError:  # cut off when its process was ended
            continue
        if isinstance(found, dict) and found.get("token") == token:
            yield found
