"""Run one kind of case: ``python -m tests.fuzz graphs --count 5000``; exits with 1 on a failure.

``training`` also prints how often each method ran and why it refused, and fails if one ran in less
than a third of its draws. ``mutants`` prints after how many draws each mistake was found.
"""

import argparse
import sys

from tests.fuzz.frame import attempt, fuzz
from tests.fuzz.graphs import check_graph
from tests.fuzz.layers import check_layers
from tests.fuzz.training import Tally

KINDS = {"graphs": check_graph, "layers": check_layers, "training": Tally()}


def main() -> int:
    parser = argparse.ArgumentParser(description="Random cases against a reference.")
    parser.add_argument("kind", choices=[*KINDS, "mutants"])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--size", type=int, default=12, help="parts of the largest case")
    parser.add_argument("--seed", type=int, help="this case alone")
    parser.add_argument("--only", default="", help="mutants whose name has this")
    options = parser.parse_args()
    if options.kind == "mutants":
        from tests.fuzz.mutants import hunt_all

        return int(bool(hunt_all(options.only)))
    check = KINDS[options.kind]
    if options.seed is not None:
        error = attempt(check, options.seed, options.size)
        print(error or "no difference")
        return int(error is not None)
    failed = 0
    for failure in fuzz(options.kind, check, options.count, options.start, options.size):
        failed += 1
        print(failure, flush=True)
    rarely = []
    if isinstance(check, Tally):
        print(check)
        rarely = check.rarely()
        print(*(f"{key} ran in less than a third of its draws\n" for key in rarely), sep="", end="")
    print(f"{options.kind}: {options.count} cases, {failed} with a difference")
    return int(failed > 0 or bool(rarely))


if __name__ == "__main__":
    sys.exit(main())
