"""``minidist bench requests``: how fast many requests are answered, measured beside predicted.

Two tables. In the first all requests come at once, and are answered in several ways: one after the
other, several at once, with quantized weights; on replicas, with layers cut over ranks, and in
stages. In the second they come at random, at several loads of each way: a load of 80 % is so many
requests a second that this way, with a full batch, would be busy for 80 % of the time. Beside the
measured wait stands Erlang's formula (inference/queueing.py).

Predicted times are those of the simulator, on a machine that is calibrated before, on other things
than these: see requests_machine.py. The network is a GPT of 817,792 parameters, which is trained or
not: the times are the same.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from minidist.bench.predicted import inserted
from minidist.bench.requests_jobs import MARK
from minidist.inference.queueing import mean_wait
from minidist.run.launcher import NoLauncher, find_launcher

MARKS = "<!-- minidist bench requests -->\n", "<!-- end of requests -->\n"  # in a page


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
    parser.add_argument("--page", type=Path, help="put the tables between this page's marks")
    options = parser.parse_args(arguments)
    try:
        loads = [float(load) for load in options.loads.split(",") if load]
    except ValueError:
        parser.error(f"--loads are numbers with commas between them, not {options.loads}")
    if not 1 <= options.new <= 69:
        parser.error(f"--new must be 1 to 69, so that prompts fit into 128, not {options.new}")
    counts = options.ranks, options.requests, options.at_once, options.turns, options.stream
    if min(counts) < 1:
        parser.error("--ranks, --requests, --at-once, --turns and --stream must be at least 1")
    if options.trained and not Path(options.trained).is_file():
        parser.error(f"--trained: there is no file {options.trained}")
    if options.page and not (options.page.is_file() and MARKS[0] in options.page.read_text()):
        parser.error(f"--page: {options.page} is no page with the line {MARKS[0].strip()}")
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
    show(result, Console(width=190))
    print(f"wrote {folder}/requests.json")
    if options.page:
        text = inserted(options.page.read_text(), markdown(result), MARKS)
        options.page.write_text(text)
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
    for title, heads, rows in tables(result):
        table = Table(title=f"{title}: measured | predicted")
        for head in heads:
            table.add_column(head, justify="right")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    console.print("\n".join(notes(result)))


def markdown(result: dict[str, Any]) -> str:
    """The same as tables of a page."""
    parts = []
    for title, heads, rows in tables(result):
        lines = [" | ".join(heads), " | ".join(["---", *["---:"] * (len(heads) - 1)])]
        lines += [" | ".join(one.replace(" | ", " / ") for one in row) for row in rows]
        parts.append(f"{title}, measured / predicted:".capitalize())
        parts.append("\n".join(f"| {line} |" for line in lines))
    return "\n\n".join([*parts, *notes(result)]) + "\n"


def tables(result: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, headings, rows) of each table."""
    first = ["", "ranks", *HEADS]
    second = ["", "load", "requests a second", *HEADS, "ms in the queue", "Erlang"]
    together = [[row["way"], str(row["ranks"]), *cells(row)] for row in result["rows"]]
    at_random = []
    for row in result["streams"]:
        both = row["measured"], row["predicted"]
        waits = [mean_wait(row["rate"], service, row["places"]) for service in row["service"]]
        at_random.append([
            row["way"],
            f"{row['load']:.0%}",
            f"{row['rate']:.1f}",
            *cells(row),
            cell(both, lambda one: f"{max(0.0, one['waited']) * 1e3:.0f}"),
            cell(waits, lambda wait: f"{wait * 1e3:.0f}"),
        ])  # fmt: skip
    return [
        ("all requests at once", first, together),
        ("requests at random times", second, at_random),
    ]


HEADS = [
    "tokens a second", "ms to first token", "99 %", "ms a token", "99 %", "MB a rank",
    "KB between ranks",
]  # fmt: skip


def cells(row: dict[str, Any]) -> list[str]:
    """The cells of ``HEADS``."""
    both = row["measured"], row["predicted"]
    return [
        cell(both, lambda one: f"{one['tokens_a_second']:.0f}"),
        cell(both, lambda one: f"{one['first'][0] * 1e3:.0f}"),
        cell(both, lambda one: f"{one['first'][1] * 1e3:.0f}"),
        cell(both, lambda one: f"{one['each'][0] * 1e3:.2f}"),
        cell(both, lambda one: f"{one['each'][1] * 1e3:.2f}"),
        cell(both, lambda one: f"{one['memory'] / 1e6:.2f}"),
        cell(both, lambda one: f"{one['sent'] / 1e3:.1f}"),
    ]


def notes(result: dict[str, Any]) -> list[str]:
    """How far the predictions are off, and what Erlang's formula assumes."""
    alone = [row for row in result["rows"] if row["ranks"] == 1]
    several = [row for row in result["rows"] if row["ranks"] > 1]
    kinds = {"One rank": alone, "Several ranks": several, "Random times": result["streams"]}
    found = [f"{kind}: {errors(rows)}." for kind, rows in kinds.items() if rows]
    found.append(
        "Erlang's formula takes the time of an answer in a full batch, measured and predicted; with"
        " fewer sequences a step is shorter, and all answers here have one length: so waits are "
        "shorter."
    )
    return found


def errors(rows: Sequence[dict[str, Any]]) -> str:
    """The median and the largest error of the predicted times of a token, and tokens a second."""
    said = []
    for what, of in (
        ("ms a token", lambda one: one["each"][0]),
        ("tokens a second", lambda one: one["tokens_a_second"]),
    ):
        off = [
            of(row["predicted"]) / of(row["measured"]) - 1 for row in rows if of(row["measured"])
        ]
        if off:
            said.append(
                f"{what} predicted with a median error of {median(map(abs, off)):.0%}, "
                f"from {min(off):+.0%} to {max(off):+.0%}"
            )
    return "; ".join(said)


def cell(both: Sequence[Any], text: Any) -> str:
    """Measured and predicted, once if they read the same."""
    first, second = map(text, both)
    return f"{first} (=)" if first == second else f"{first} | {second}"
