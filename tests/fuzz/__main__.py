"""Run one kind of case: ``python -m tests.fuzz graphs --count 5000``; exits with 1 on a failure."""

import argparse
import sys

from tests.fuzz.frame import attempt, fuzz
from tests.fuzz.graphs import check_graph
from tests.fuzz.layers import check_layers

KINDS = {"graphs": check_graph, "layers": check_layers}


def main() -> int:
    parser = argparse.ArgumentParser(description="Random cases against a reference.")
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--size", type=int, default=12, help="parts of the largest case")
    parser.add_argument("--seed", type=int, help="this case alone")
    options = parser.parse_args()
    check = KINDS[options.kind]
    if options.seed is not None:
        error = attempt(check, options.seed, options.size)
        print(error or "no difference")
        return int(error is not None)
    failed = 0
    for failure in fuzz(options.kind, check, options.count, options.start, options.size):
        failed += 1
        print(failure, flush=True)
    print(f"{options.kind}: {options.count} cases, {failed} with a difference")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
