"""The numbers in the folded answers of the lessons, computed again.

    python -m tests.long.answers            # all of them
    python -m tests.long.answers 07 12      # those of some lessons

An exercise changes a lesson and runs it, or a part of it; ``answers.toml`` says how. What the
answer claims must stand in its text and be what comes out. Accuracies depend a little on the
machine.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

from tests.mpi.run import ROOT

FILE = Path(__file__).with_name("answers.toml")
ANSWER = "\n\ndef answer(*values):\n    print('ANSWER', *values, sep='|')\n\n\n"


def entries() -> list[dict[str, Any]]:
    """Those of the file: lesson, number, claims, code; and edits, until, near, short or not."""
    return tomllib.loads(FILE.read_text())["answer"]


def program(entry: dict[str, Any]) -> str:
    """The lesson with the exercise's changes, up to the heading ``until``; then its code."""
    source = next((ROOT / "lessons").glob(f"{entry['lesson']}_*.py")).read_text()
    for old, new in entry.get("edits", []):
        if old not in source:
            raise ValueError(f"lesson {entry['lesson']} no longer has {old!r}")
        source = source.replace(old, new)
    if "until" in entry:
        source = source[: source.index(f"# {entry['until']}\n")]
    return source + ANSWER + entry.get("code", "")


def text(entry: dict[str, Any]) -> str:
    """What the lesson says, on one line."""
    source = next((ROOT / "lessons").glob(f"{entry['lesson']}_*.py")).read_text()
    answers = source.partition("<summary>Answers</summary>")[2]
    found = re.search(rf"^# {entry['number']}\. (.*?)^# (?:\d\. |</details>)", answers, re.M | re.S)
    if found is None:
        raise ValueError(f"lesson {entry['lesson']} has no answer {entry['number']}")
    return " ".join(re.sub(r"^# ?", "", found[1], flags=re.M).split())


def wrong(entry: dict[str, Any]) -> str:
    """What is wrong with an answer; "" if nothing."""
    said = text(entry)
    for claim in entry["claims"]:
        if claim not in said:
            return f"the answer does not say {claim!r}: {said}"
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", program(entry)],
            cwd=folder,
            env=os.environ | {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=1800,
            check=False,
        )
    if done.returncode:
        return done.stderr[-500:]
    printed = re.findall(r"^ANSWER\|(.*)$", done.stdout, re.M)
    found = "|".join(printed).split("|")
    if len(found) != len(entry["claims"]):
        return f"claims {entry['claims']}, found {found}"
    near = entry.get("near", 0.0)
    for claim, value in zip(entry["claims"], found, strict=True):
        if not (equal(claim, value, near)):
            return f"claims {entry['claims']}, found {found}"
    return ""


def equal(claim: str, value: str, near: float) -> bool:
    """Words must be equal; numbers as far apart as ``near`` at most, or as the claim is rounded."""
    if claim == value:
        return True
    try:
        said, found = (float(one.replace(",", "").rstrip(" %")) for one in (claim, value))
    except ValueError:
        return False
    digits = len(claim.rstrip(" %").partition(".")[2])
    return abs(said - found) <= max(near, 0.51 * 10**-digits)


def main(lessons: list[str]) -> int:
    """Returns 1 if an answer is wrong."""
    failures = 0
    for entry in entries():
        if lessons and entry["lesson"] not in lessons:
            continue
        start = time.monotonic()
        problem = wrong(entry)
        failures += bool(problem)
        name = f"lesson {entry['lesson']}, answer {entry['number']}"
        print(f"{name}: {problem or 'ok'}, {time.monotonic() - start:.0f} s", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
