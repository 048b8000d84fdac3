"""``minidist bench scaling``: the speed of data parallel training on more ranks.

Three parts, in one run:

    real      samples a second of a large MLP and a GPT on 1 and on 2 MPI ranks, one thread each:
              strong scaling (the same global batch) and weak (the same batch on each rank);
              compared with PyTorch's DistributedDataParallel over gloo, if there is torch
    overlap   the step without communication, communication alone, and both together:
              hidden = (compute + communicate - together) / communicate;
              in the memory of one machine, and on a link that needs no core
    virtual   the MLP on 2 to 256 ranks of several machines, in the local world, compared with
              the α-β formula

scaling_jobs.py describes the jobs, and explains why nothing is hidden in the memory of one machine.
The time of a step is that of the slowest rank. minidist and PyTorch, 1 and 2 ranks, run in turn for
``--rounds``. The median and the best are reported: on a machine that also does other work, the best
is closer to the time that the program needs.
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

import numpy as np
from rich.console import Console
from rich.table import Table

from minidist.bench.peers import has_torch, torch_ranks
from minidist.bench.scaling_jobs import JOBS, MARK, GptJob
from minidist.bench.scaling_plot import draw
from minidist.bench.scaling_virtual import virtual
from minidist.run.launcher import NoLauncher, find_launcher

Row = dict[str, Any]


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="minidist bench scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    parser.add_argument("--models", default=",".join(JOBS), help="of the real part")
    parser.add_argument("--steps", type=int, default=4, help="timed steps in each round")
    parser.add_argument("--rounds", type=int, default=3, help="turns that each program gets")
    parser.add_argument("--ranks", type=int, default=256, help="largest rank count, virtual part")
    parser.add_argument("--torch", default=sys.executable, help="a Python that has torch")
    parser.add_argument("--out", default="out/bench", help="folder for scaling.json and .png")
    options = parser.parse_args(arguments)
    models = options.models.split(",")
    for model in models:
        if model not in JOBS:
            parser.error(f"unknown model {model!r}: choose among {', '.join(JOBS)}")
    rows = real(models, options.steps, options.rounds, options.torch)
    report = {"real": rows, "summary": summary(rows), "virtual": virtual(options.ranks)}
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    for path in (folder / "scaling.json", options.json):
        if path is not None:
            path.write_text(json.dumps(report, indent=1) + "\n")
    draw(report, folder / "scaling.png")
    show(report, Console(width=120))
    print(f"wrote {folder}/scaling.json and {folder}/scaling.png")
    return 0


# The real part


def real(models: list[str], steps: int, rounds: int, torch: str) -> list[Row]:
    """The rows of each program, with the times of all rounds; empty without an mpiexec."""
    try:
        find_launcher()
    except NoLauncher:
        return []
    found: dict[tuple[Any, ...], Row] = {}
    with_torch = has_torch(torch)
    for _ in range(rounds):
        for ranks in (1, 2):
            rows = ours(models, steps, ranks)
            rows += pytorch(torch, models, steps, ranks) if with_torch else []
            for row in rows:
                key = row["model"], row["library"], row["ranks"], row["what"]
                for clock in ("times", "cpu") if key in found else ():
                    row[clock] = found[key][clock] + row[clock]
                found[key] = row
    return [row | statistics(row) for row in found.values()]


def statistics(row: Row) -> dict[str, float]:
    """Median and best seconds of a step, and samples a second for both."""
    middle, best = median(row["times"]), min(row["times"])
    return {
        "seconds": middle,
        "best_seconds": best,
        "samples_per_second": row["samples"] / middle,
        "best_samples_per_second": row["samples"] / best,
    }


def ours(models: list[str], steps: int, ranks: int) -> list[Row]:
    """minidist's rows, measured on newly started MPI ranks."""
    command = [sys.executable, "-m", "minidist", "run", "-n", str(ranks), "-m"]
    command += ["minidist.bench.scaling_jobs", json.dumps({"models": models, "steps": steps})]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        if line.startswith(MARK):
            return json.loads(line.removeprefix(MARK))
    raise RuntimeError(f"{ranks} ranks gave no result: status {done.returncode}\n{done.stderr}")


def pytorch(python: str, models: list[str], steps: int, ranks: int) -> list[Row]:
    """PyTorch's rows for the same jobs, on the same number of processes."""
    jobs = {
        name: {
            "kind": "gpt" if isinstance(JOBS[name], GptJob) else "mlp",
            "shape": JOBS[name].shape,
            "batch": JOBS[name].batch,
        }
        for name in models
    }
    wanted = [json.dumps(jobs), str(steps)]
    return torch_ranks(python, "minidist.bench.peer_ddp", wanted, ranks)


# The findings


def summary(rows: list[Row], figure: str = "samples_per_second") -> list[Row]:
    """For each model and kind of scaling: speed-up, ratio to PyTorch, and hidden communication.

    ``speedup``: the fastest method on 2 ranks over the fastest on 1; the ratios to PyTorch also use
    the fastest. ``ceiling``: the speed-up of two ranks that never communicate, which is limited by
    the machine's memory, caches and clock. For hidden communication see ``overlap``.
    """
    found = []
    for model in dict.fromkeys(row["model"] for row in rows):
        by = {
            (row["library"], row["ranks"], row["what"]): row
            for row in rows
            if row["model"] == model
        }
        for mode in ("strong", "weak"):
            one, two, peer_one, peer_two = (
                max((r[figure] for k, r in by.items() if k[:2] == who and mode in k[2]), default=0)
                for who in (("minidist", 1), ("minidist", 2), ("torch", 1), ("torch", 2))
            )
            found.append(
                {
                    "model": model,
                    "mode": mode,
                    "speedup": two / one if one else None,
                    "torch_speedup": peer_two / peer_one if peer_one else None,
                    "over_torch_1": one / peer_one if peer_one else None,
                    "over_torch_2": two / peer_two if peer_two else None,
                }
            )
        if ("minidist", 2, "compute") in by:
            of_two = {k[2]: row for k, row in by.items() if k[:2] == ("minidist", 2)}
            found[-1] |= {"ceiling": 2 * of_two["compute"][figure] / one} | overlap(of_two)
    return found


def overlap(by: dict[str, Row]) -> dict[str, float]:
    """Hidden communication, from the rows of 2 ranks: medians of the ratios within each turn.

    ``efficiency``: time of both ranks without communication over time with it (flat): the share of
    time not spent on communication. ``hidden``: the share of communication that overlapping hides
    in shared memory; there the core is busy for the share ``core_busy`` of a flat step. Then the
    same on the link, measured and by the formula.
    """
    compute, communicate, flat, both, link_flat, link_both = (
        np.array(by[what]["times"])
        for what in (
            *("compute", "communicate", "weak, flat", "weak, overlapped"),
            *("link, flat", "link, overlapped"),
        )
    )
    link = by["link, overlapped"]
    total = communicate + link["link_seconds"]
    return {
        "efficiency": median(compute / flat),
        "hidden": median((compute + communicate - both) / communicate),
        "core_busy": median(np.array(by["weak, flat"]["cpu"]) / flat),
        "hidden_on_link": median((compute + total - link_both) / total),
        "hidden_by_formula": link["saved_by_formula"] / median(total),
        "core_busy_on_link": median(np.array(by["link, flat"]["cpu"]) / link_flat),
    }


def show(report: dict[str, Any], console: Console) -> None:
    """Print the report as a table and a few lines of text."""
    table = Table(title="real: one thread a rank")
    for heading in ("model", "library", "ranks", "what", "ms a step", "best", "samples/s", "best"):
        table.add_column(heading, justify="left" if heading in ("model", "what") else "right")
    for row in report["real"]:
        table.add_row(
            row["model"],
            row["library"],
            str(row["ranks"]),
            row["what"],
            f"{row['seconds'] * 1e3:.1f}",
            f"{row['best_seconds'] * 1e3:.1f}",
            f"{row['samples_per_second']:,.0f}",
            f"{row['best_samples_per_second']:,.0f}",
        )
    console.print(table)
    says = {
        "speedup": "2 ranks over 1: {:.2f} ×",
        "ceiling": "without communication {:.2f} ×",
        "torch_speedup": "PyTorch's {:.2f} ×",
        "over_torch_1": "over PyTorch on 1 rank {:.2f}",
        "over_torch_2": "over DDP on 2 ranks {:.2f}",
        "efficiency": "efficiency {:.2f}",
        "hidden": "communication hidden in shared memory {:.2f}",
        "core_busy": "where the core is busy for {:.2f} of a flat step",
        "hidden_on_link": "hidden on a link of 1 Gbit/s {:.2f}",
        "hidden_by_formula": "by the formula {:.2f}",
        "core_busy_on_link": "where the core is busy for {:.2f}",
    }
    for row in report["summary"]:
        facts = [say.format(row[key]) for key, say in says.items() if row.get(key) is not None]
        console.print(f"{row['model']} {row['mode']}: {', '.join(facts)}", highlight=False)
    for row in report["virtual"]:
        gap = abs(row["seconds"] / row["predicted_seconds"] - 1)
        console.print(
            f"{row['machine']:10} {row['ranks']:4} ranks {row['seconds'] * 1e3:9.3f} ms, "
            f"formula off by {gap:.0e}",
            highlight=False,
        )
