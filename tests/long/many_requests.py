"""How fast many requests are answered, measured: see JOBS in run.py.

    python -m tests.long.many_requests [--trained FILE]

Throughput and times of one sequence after the other, of eight at once, and of eight with quantized
weights; fails if eight at once are less than three times as fast. Then a stream of requests at
several arrival rates, beside Erlang's formula.
"""

from __future__ import annotations

import argparse
from statistics import median

import numpy as np
from rich.console import Console
from rich.table import Table

from minidist.compress import files, quantize_weights
from minidist.inference import Engine, Request, mean_wait, run
from minidist.models import gpt

AT_ONCE, NEW = 8, 64


def requests(count: int, seed: int = 0) -> list[Request]:
    random = np.random.default_rng(seed)
    return [
        Request(tuple(random.integers(0, 63, int(random.integers(4, 60))).tolist()), NEW, seed=i)
        for i in range(count)
    ]


def throughput(model, others, console: Console) -> float:
    """Compare ways of answering the same requests; returns seconds of an answer at AT_ONCE."""
    ways = {"one after the other": (model, 1), f"{AT_ONCE} at once": (model, AT_ONCE)}
    ways |= {f"{AT_ONCE} at once, {name}": (other, AT_ONCE) for name, other in others.items()}
    timings: dict[str, list] = {name: [] for name in ways}
    for _ in range(3):  # in turns, so that a change of the machine's load meets all
        for name, (one, at_once) in ways.items():
            timings[name].append(run(Engine(one, at_once), requests(24)))
    view = Table(title=f"24 requests of {NEW} new tokens; GPT of {model.flat.size:,} parameters")
    for heading in (
        "", "tokens a second", "ms to first token", "ms a token", "99 %", "cache MB", "weights MB",
    ):  # fmt: skip
        view.add_column(heading, justify="right")
    speeds = {}
    for name, found in timings.items():
        one, at_once = ways[name]
        speeds[name] = median(timing.tokens_a_second for timing in found)
        middle = sorted(found, key=lambda timing: timing.tokens_a_second)[1]
        view.add_row(
            name,
            f"{speeds[name]:.0f}",
            f"{middle.first_token() * 1e3:.0f}",
            f"{middle.each_token() * 1e3:.2f}",
            f"{middle.each_token(99) * 1e3:.2f}",
            f"{Engine(one, at_once).pool.nbytes / 1e6:.1f}",
            f"{sum(array.nbytes for array in one.state().values()) / 1e6:.2f}",
        )
    console.print(view)
    gain = speeds[f"{AT_ONCE} at once"] / speeds["one after the other"]
    console.print(f"{AT_ONCE} at once: {gain:.1f} times the throughput")
    assert gain >= 3, gain
    return AT_ONCE * NEW / speeds[f"{AT_ONCE} at once"]


def arrivals(model, service: float, console: Console) -> None:
    """A stream at several rates: what users wait for, and what the formula says."""
    view = Table(title=f"a stream of 120 requests; {service:.2f} s an answer with a full batch")
    for heading in (
        "load", "requests a second", "tokens a second", "s to first token", "99 %",
        "mean s in queue", "Erlang",
    ):  # fmt: skip
        view.add_column(heading, justify="right")
    for load in (0.3, 0.6, 0.8, 0.95):
        rate = load * AT_ONCE / service
        times = np.cumsum(np.random.default_rng(1).exponential(1 / rate, 120)).tolist()
        timing = run(Engine(model, AT_ONCE), requests(120, seed=2), times)
        waited = timing.first_token_mean() - timing.each_token()
        view.add_row(
            f"{load:.0%}",
            f"{rate:.2f}",
            f"{timing.tokens_a_second:.0f}",
            f"{timing.first_token():.3f}",
            f"{timing.first_token(99):.3f}",
            f"{waited:.3f}",
            f"{mean_wait(rate, service, AT_ONCE):.3f}",
        )
    console.print(view)
    console.print(
        "The formula takes the time of an answer in a full batch; with fewer sequences a step is "
        "shorter, and all answers here have one length: both make the measured wait shorter."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trained", help="a safetensors file with the parameters of gpt(63)")
    options = parser.parse_args()
    model = gpt(63).init(0)
    if options.trained:
        model.load(files.parameters(options.trained))
    others = {f"int{bits} weights": quantize_weights(model, bits) for bits in (8, 4)}
    console = Console(width=150)
    arrivals(model, throughput(model, others, console), console)


if __name__ == "__main__":
    main()
