"""``minidist bench requests``: how fast many requests are answered, measured beside predicted.

Two tables. In the first all requests come at once, and are answered in several ways: one after the
other, several at once, with quantized weights; on replicas, with layers cut over ranks, and in
stages. In the second they come at random, at several loads of each way: a load of 80 % is so many
requests a second that this way, with a full batch, would be busy for 80 % of the time. Beside the
measured wait stands Erlang's formula (inference/queueing.py).

Predicted times are those of the simulator: requests_jobs.py says how. The network is a GPT of
817,792 parameters, which is trained or not: the times are the same.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from minidist.bench.requests_jobs import MARK
from minidist.inference.queueing import mean_wait
from minidist.run.launcher import NoLauncher, find_launcher


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="minidist bench requests",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--ranks", type=int, default=2, help="of the ways on several ranks")
    parser.add_argument("--requests", type=int, default=24, help="that come all at once")
    parser.add_argument("--new", type=int, default=64, help="tokens of each answer, 1 to 69")
    parser.add_argument("--at-once", type=int, default=8, help="sequences on each replica")
    parser.add_argument("--stream", type=int, default=100, help="requests that come at random")
    parser.add_argument("--loads", default="0.3,0.6,0.8,0.95", help="of the stream")
    parser.add_argument("--turns", type=int, default=3, help="of which the middle one is shown")
    parser.add_argument("--trained", default="", help="a safetensors file, parameters of gpt(63)")
    parser.add_argument("--out", default="out/bench", help="folder for requests.json")
    options = parser.parse_args(arguments)
    loads = [float(load) for load in options.loads.split(",") if load]
    if not 1 <= options.new <= 69:
        parser.error(f"--new must be 1 to 69, so that prompts fit into 128, not {options.new}")
    if min(options.ranks, options.requests, options.at_once, options.turns) < 1:
        parser.error("--ranks, --requests, --at-once and --turns must be at least 1")
    if not all(0 < load < 1 for load in loads):
        parser.error(f"--loads lie between 0 and 1, not {options.loads}")
    settings = {
        "count": options.requests, "new": options.new, "at_once": options.at_once,
        "stream": options.stream, "loads": loads, "turns": options.turns,
        "trained": options.trained,
    }  # fmt: skip
    result = measured(options.ranks, settings)
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "requests.json").write_text(json.dumps(result, indent=1) + "\n")
    show(result, Console(width=170))
    print(f"wrote {folder}/requests.json")
    return 0


def measured(ranks: int, settings: dict[str, Any]) -> dict[str, Any]:
    """The rows, from newly started MPI ranks; without an mpiexec, from one rank."""
    command = [sys.executable, "-m", "minidist"]
    try:
        find_launcher()
        command += ["run", "-n", str(ranks), "-m", "minidist.bench.requests_jobs"]
    except NoLauncher:
        command[2:] = ["minidist.bench.requests_jobs"]
    command.append(json.dumps(settings))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        if line.startswith(MARK):
            return json.loads(line.removeprefix(MARK))
    raise RuntimeError(f"{ranks} ranks gave no result: status {done.returncode}\n{done.stderr}")


def show(result: dict[str, Any], console: Console) -> None:
    """Both tables. A cell has the measured number and, after it, the predicted one."""
    table = Table(title="all requests at once: measured | predicted")
    for heading in (
        "", "ranks", "tokens a second", "ms to first token", "99 %", "ms a token", "99 %",
        "MB a rank", "KB between ranks",
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    for row in result["rows"]:
        both = row["measured"], row["predicted"]
        table.add_row(
            row["way"],
            str(row["ranks"]),
            cell(both, lambda one: f"{one['tokens_a_second']:.0f}"),
            cell(both, lambda one: f"{one['first'][0] * 1e3:.0f}"),
            cell(both, lambda one: f"{one['first'][1] * 1e3:.0f}"),
            cell(both, lambda one: f"{one['each'][0] * 1e3:.2f}"),
            cell(both, lambda one: f"{one['each'][1] * 1e3:.2f}"),
            cell(both, lambda one: f"{one['memory'] / 1e6:.2f}"),
            cell(both, lambda one: f"{one['sent'] / 1e3:.1f}"),
        )
    console.print(table)
    table = Table(title="requests at random times: measured | predicted")
    for heading in (
        "", "load", "requests a second", "tokens a second", "ms to first token", "99 %",
        "ms a token", "99 %", "ms in the queue", "Erlang",
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    for row in result["streams"]:
        both = row["measured"], row["predicted"]
        waits = [mean_wait(row["rate"], service, row["places"]) for service in row["service"]]
        table.add_row(
            row["way"],
            f"{row['load']:.0%}",
            f"{row['rate']:.1f}",
            cell(both, lambda one: f"{one['tokens_a_second']:.0f}"),
            cell(both, lambda one: f"{one['first'][0] * 1e3:.0f}"),
            cell(both, lambda one: f"{one['first'][1] * 1e3:.0f}"),
            cell(both, lambda one: f"{one['each'][0] * 1e3:.2f}"),
            cell(both, lambda one: f"{one['each'][1] * 1e3:.2f}"),
            cell(both, lambda one: f"{max(0.0, one['waited']) * 1e3:.0f}"),
            cell(waits, lambda wait: f"{wait * 1e3:.0f}"),
        )
    console.print(table)
    console.print(
        "Erlang's formula takes the time of an answer in a full batch, measured and predicted; with"
        " fewer sequences a step is shorter, and all answers here have one length: so waits are "
        "shorter."
    )


def cell(both: Sequence[Any], text: Any) -> str:
    """Measured and predicted, once if they read the same."""
    first, second = map(text, both)
    return f"{first} (=)" if first == second else f"{first} | {second}"
