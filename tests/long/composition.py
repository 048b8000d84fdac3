"""The whole matrix of compositions against serial training: see JOBS in run.py.

    python -m tests.long.composition [--done FILE]

Each cell is five steps in float64 on simulated ranks. Losses, parameters and, by themselves, the
norms of the gradients equal serial training's at 1e-10. What has passed is written to a file, so a
second call goes on with the rest.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

from minidist import launch
from minidist.parallel import MeshParallel
from tests.parallel.mesh.combinations import Combination, every
from tests.parallel.tensor.checks import check_equals_serial


def passes(one: Combination) -> bool:
    try:
        launch(partial(check_equals_serial, kind=MeshParallel, task=one.task()), one.ranks)
    except Exception as error:
        print(f"FAILED {one}: {type(error).__name__}: {error}", flush=True)
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--done", type=Path, default=Path("out/long/composition.txt"))
    options = parser.parse_args()
    before = set(options.done.read_text().splitlines()) if options.done.exists() else set()
    options.done.parent.mkdir(parents=True, exist_ok=True)
    cells, failed, start = every(), 0, time.monotonic()
    rest = [one for one in cells if str(one) not in before]
    with options.done.open("a") as done:
        for number, one in enumerate(rest, 1):
            if passes(one):
                print(one, file=done, flush=True)
            else:
                failed += 1
            if number % 40 == 0 or number == len(rest):
                spent = time.monotonic() - start
                print(f"{number} of {len(rest)}, {spent / number:.2f} s each", flush=True)
    print(f"{len(cells) - failed} of {len(cells)} combinations equal serial training")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
