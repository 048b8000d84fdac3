"""Every lesson under python, and on 1, 2, 3 and 4 real ranks of MPICH and of Open MPI.

    python -m tests.long.lessons                       # all of them
    python -m tests.long.lessons 07 12                 # some lessons
    python -m tests.long.lessons --world mpich 07      # in one of the three

A run must end well, warn of nothing, draw a picture, and say how many real or simulated ranks there
were if it has a section on them. What it prints goes to ``out/long/lessons/``. A call goes on where
an unfinished one ended: what has passed runs again only if its lesson's code has changed since, or
if all runs have passed. The environment of Open MPI is the one of ``make test-openmpi``.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.mpi.run import ROOT

LESSONS = sorted((ROOT / "lessons").glob("[0-9]*.py"))
OPENMPI = ROOT / ".venv-openmpi" / "bin" / "python"
PYTHONS = {"python": Path(sys.executable), "mpich": Path(sys.executable), "openmpi": OPENMPI}
RANKS = {"python": (0,), "mpich": (1, 2, 3, 4), "openmpi": (1, 2, 3, 4)}  # 0: not launched
FOLDER = ROOT / "out" / "long" / "lessons"
LIMIT = 600  # seconds


def cases(lessons: list[Path], worlds: list[str]) -> Iterator[tuple[Path, str, int]]:
    """(lesson, world, ranks); one lesson after the other."""
    for lesson in lessons:
        for world in worlds:
            for ranks in RANKS[world]:
                yield lesson, world, ranks


def code_of(lesson: Path) -> str:
    """A hash of a lesson's code: its text may change, and what has passed is passed."""
    lines = lesson.read_text().splitlines()
    code = "\n".join(line for line in lines if line and not line.startswith("#"))
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def run(lesson: Path, world: str, ranks: int, folder: Path) -> str:
    """What is wrong with a run; "" if nothing. It writes into ``folder``."""
    how = ["-m", "minidist", "run", "-n", str(ranks)] if ranks else []
    environment = os.environ | {
        "LESSON": "quick", "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
        "MINIDIST_TUNING": os.devnull,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{lesson.stem}.{world}{ranks or ''}.txt"
    with log.open("w") as file:
        command = [str(PYTHONS[world]), *how, str(lesson)]
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT
        )
        try:
            status = process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            process.terminate()  # which ends the ranks, too
            process.wait()
            return f"took more than {LIMIT} s"
    return wrong(lesson.read_text(), log.read_text(), status, ranks)


def wrong(source: str, printed: str, status: int, ranks: int) -> str:
    """What is wrong with what a lesson has printed; ``ranks``: that were launched, or 0."""
    if status:
        return f"ended with {status}: {' '.join(printed.splitlines()[-1:])}"
    if warned := re.search(r".*\w+Warning: .*", printed):
        return f"warns: {warned[0]}"
    if "picture:" not in printed:
        return "draws no picture"
    if "launched_size() else" not in source:
        return ""  # trains on one rank: every process does all of it
    pictures = re.findall(r"^picture: .*$", printed, re.M)
    if len(pictures) != len(set(pictures)):
        return "says more than once where a picture is"
    wanted = f"{ranks} real " if ranks else r"\d+ simulated "
    return "" if re.search(f"^{wanted}", printed, re.M) else f"has no line on {wanted}ranks"


def main() -> int:
    """Returns 1 if a run has failed; they are listed at the end."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("lessons", nargs="*", help="their numbers, such as 07 (default: all)")
    parser.add_argument("--world", choices=PYTHONS, action="append", help="default: all three")
    options = parser.parse_args()
    lessons = [path for path in LESSONS if path.name[:2] in (options.lessons or [path.name[:2]])]
    worlds = options.world or list(PYTHONS)
    if "openmpi" in worlds and not OPENMPI.exists():
        print(f"without Open MPI: there is no {OPENMPI}; `make test-openmpi` makes it", flush=True)
        worlds.remove("openmpi")
    FOLDER.mkdir(parents=True, exist_ok=True)
    passed, failures = FOLDER / "passed", []
    done = set(passed.read_text().splitlines()) if passed.exists() else set()
    for lesson, world, ranks in cases(lessons, worlds):
        name = f"{lesson.stem} {world}" + (f" {ranks}" if ranks else "")
        mark = f"{name} {code_of(lesson)}"
        if mark in done:
            continue
        start = time.monotonic()
        problem = run(lesson, world, ranks, FOLDER)
        print(f"{name}: {problem or 'ok'}, {time.monotonic() - start:.0f} s", flush=True)
        if problem:
            failures.append(f"{name}: {problem}")
        else:
            with passed.open("a") as file:
                file.write(f"{mark}\n")
    if failures:
        print(f"{len(failures)} failed:", *failures, sep="\n  ")
    elif not options.lessons and not options.world:
        passed.unlink(missing_ok=True)  # all have passed: the next call begins anew
        print("all passed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
