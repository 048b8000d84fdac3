"""Compare with every task, by every method, on 1, 2, 3, 4 and 8 ranks of both worlds.

    python -m tests.long.every_task                      # all of it
    python -m tests.long.every_task gpt --world local    # a part

No row may end a run. Each row has the bytes, messages and memory of its formula on every rank, and
an exact one the losses and parameters of serial training; a row that is left out says why in words.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from minidist.compare import TASKS
from tests.mpi.run import ROOT, mpiexec

RANKS = (1, 2, 3, 4, 8)
OWN = "tests.compare.own"
BOUND = 1e-9  # of float64: the losses of a deep model spread rounding


def run(task: str, ranks: int, world: str, folder: Path) -> tuple[dict[str, Any], str]:
    """The report of a comparison; and what is wrong, if it failed."""
    options = ["-m", "minidist", "compare", "--world", world, "--task", task, "--ranks", str(ranks)]
    options += ["--methods", f"all,{OWN}:rows", "--steps", "2", "--batch", "13"]
    options += ["--dtype", "float64", "--out", str(folder)]
    if world == "mpi":
        done = mpiexec(ranks, *options, timeout=1800)
    else:
        command = [sys.executable, *options]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        return {}, done.stdout[-500:] + done.stderr[-2000:]
    return json.loads((folder / "compare.json").read_text()), ""


def wrong(report: dict[str, Any]) -> list[str]:
    """What is not as it should be."""
    found = []
    for row in report["rows"]:
        name = f"{row['method']}/{row['variant']}"
        for what in ("bytes_sent", "messages_sent", "peak_bytes"):
            predicted = row[f"predicted_{what}"]
            if predicted != row[what] and not (predicted is None and row["method"] == "own"):
                found.append(f"{name}: {what} {row[what]}, predicted {predicted}")
        if row["exact"] and not max(row["loss_gap"], row["parameter_gap"]) <= BOUND:
            found.append(f"{name}: gaps {row['loss_gap']:.1e} and {row['parameter_gap']:.1e}")
    for row, reason in report["not_applicable"].items():
        if "Error: " in reason or "Deadlock" in reason:
            found.append(f"{row} left out: {reason}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tasks", nargs="*", default=[], help="default: all, and one of our own")
    parser.add_argument("--world", choices=("local", "mpi"), help="default: both")
    parser.add_argument("--ranks", type=int, help=f"default: {RANKS}")
    options = parser.parse_args()
    failed = 0
    for world in [options.world] if options.world else ["local", "mpi"]:
        for task in options.tasks or [*TASKS, f"{OWN}:narrow"]:
            for ranks in [options.ranks] if options.ranks else RANKS:
                start = time.monotonic()
                with tempfile.TemporaryDirectory() as folder:
                    report, error = run(task, ranks, world, Path(folder))
                problems = [error] if error else wrong(report)
                failed += bool(problems)
                rows, left = len(report.get("rows", ())), report.get("not_applicable", {})
                print(
                    f"{world} {task} on {ranks}: {rows} rows, left out: {', '.join(left) or 'none'}"
                    f"; {time.monotonic() - start:.0f} s",
                    flush=True,
                )
                for row, reason in left.items():
                    print(f"    {row}: {reason}")
                for problem in problems:
                    print(f"  WRONG {problem}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
