"""How fast many requests are answered, measured beside predicted: see JOBS in run.py.

    python -m tests.long.many_requests [--trained FILE] [--tiny]

The tables of ``minidist bench requests``. Fails if eight at once are less than three times as fast
as one after the other, or if bytes and memory are not as predicted.
"""

from __future__ import annotations

import argparse

from rich.console import Console

from minidist.bench.requests import measured, show


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trained", default="", help="a safetensors file, parameters of gpt(63)")
    parser.add_argument("--tiny", action="store_true", help="only to see that it works")
    options = parser.parse_args()
    settings = {"count": 24, "new": 64, "at_once": 8, "stream": 120, "turns": 3,
                "loads": [0.3, 0.6, 0.8, 0.95], "trained": options.trained}  # fmt: skip
    if options.tiny:
        settings |= {"count": 8, "new": 6, "stream": 4, "turns": 1, "loads": [0.5]}
    result = measured(2, settings)
    show(result, Console(width=170))
    rows = {row["way"]: row for row in result["rows"]}
    for row in rows.values():
        for what in ("sent", "memory"):
            assert row["measured"][what] == row["predicted"][what], (row["way"], what)
    one, eight = (
        rows[way]["measured"]["tokens_a_second"] for way in ("one after the other", "8 at once")
    )
    print(f"8 at once: {eight / one:.1f} times the throughput of one after the other")
    assert options.tiny or eight >= 3 * one


if __name__ == "__main__":
    main()
