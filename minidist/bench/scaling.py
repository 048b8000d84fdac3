"""``minidist bench scaling``: how much faster is data parallel training on more ranks?

Three parts, in one run:

    real      samples a second of a large MLP and a GPT on 1 and on 2 MPI ranks, one thread each:
              strong scaling (the same global batch) and weak (the same batch a rank); beside
              PyTorch's DistributedDataParallel over gloo, if a Python with torch is at hand
    overlap   the step without communication, communication alone, and both overlapped:
              hidden = (compute + communicate - together) / communicate
    virtual   the same job on 2 to 256 ranks of several machines, in the local world, and the α-β
              formula through the points

A step's time is that of its slowest rank. The median over steps is reported, and the best: on a
machine that does other work too, the best is nearer to what the program needs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from minidist.collectives import ring
from minidist.comm.comm import Comm
from minidist.comm.launch import find_mpiexec, launch, mpi_environment
from minidist.comm.local import LocalWorld
from minidist.comm.machine import Machine, profile
from minidist.data import Batches, Dataset
from minidist.models import gpt, mlp
from minidist.nn import CrossEntropy
from minidist.nn.layers import Sequential
from minidist.optim import SGD, AdamW, Optimizer
from minidist.parallel import DataParallel, Method, Overlapped

MARK = "minidist-scaling:"  # what the workers' line of results begins with
RANKS = [2, 4, 8, 16, 32, 64, 128, 256]


@dataclass(frozen=True)
class Job:
    """A model, its data and the batch of one rank in weak scaling (of all in strong scaling)."""

    model: Callable[[], Sequential]
    optimizer: Callable[[], Optimizer]
    batch: int
    data: Callable[[], Dataset]
    bucket_mb: float


def _images() -> Dataset:
    random = np.random.default_rng(0)
    pixels = random.standard_normal((2048, 784)).astype(np.float32)
    return Dataset("random images", pixels, random.integers(0, 10, 2048), 10)


def _text() -> Dataset:
    tokens = np.random.default_rng(0).integers(0, 65, (256, 129))
    return Dataset("random text", tokens[:, :-1], tokens[:, 1:], 65)


JOBS = {
    "mlp": Job(lambda: mlp((784, 1024, 1024, 1024, 10)), lambda: SGD(0.05, 0.9), 512, _images, 4.0),
    "gpt": Job(
        lambda: gpt(65, context=128, width=128, layers=4, heads=4),
        lambda: AdamW(1e-3),
        16,
        _text,
        1.0,
    ),
}
# Small enough for 256 replicas in one process. Sources of the speeds: TCP over 1 Gbit/s Ethernet;
# InfiniBand HDR, 200 Gbit/s, beside a node of 100 GFLOP/s; the default is one shared-memory laptop.
SMALL = (784, 64, 10)
MACHINES = [profile("laptop"), profile("gigabit"), profile("hgx").network_level()]


def run(arguments: Sequence[str]) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="minidist bench scaling", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--models", default="mlp,gpt", help="of the real part")
    parser.add_argument("--steps", type=int, default=12, help="timed steps of each run")
    parser.add_argument("--ranks", type=int, default=256, help="largest rank count, virtual part")
    parser.add_argument("--torch", default=sys.executable, help="a Python that has torch")
    parser.add_argument("--out", default="out/bench", help="folder for scaling.json and .png")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    models = options.models.split(",")
    for model in models:
        if model not in JOBS:
            parser.error(f"unknown model {model!r}: choose among {', '.join(JOBS)}")
    if options.worker:
        return _worker(models, options.steps)
    report = {"real": _real(models, options), "virtual": _virtual(options.ranks)}
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scaling.json").write_text(json.dumps(report, indent=1) + "\n")
    draw(report, folder / "scaling.png")
    if options.json:
        print(json.dumps(report, indent=1))
    else:
        _show(report, Console(width=120), folder)
    return 0


# The real part


def _real(models: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows: model, library, ranks, what; seconds and best seconds a step, samples a second."""
    mpiexec = find_mpiexec()
    if mpiexec is None:
        return []
    rows = []
    module = ["-m", "mpi4py", "-m", "minidist.bench.scaling"]
    for ranks in (1, 2):
        command = [mpiexec, "-n", str(ranks), sys.executable, *module, "--worker", "yes"]
        command += ["--models", ",".join(models), "--steps", str(options.steps)]
        done = subprocess.run(
            command, env=mpi_environment(), capture_output=True, text=True, check=False
        )
        rows += _results(done, f"{ranks} ranks of minidist")
        rows += _torch(models, ranks, options)
    return rows


def _results(done: Any, what: str) -> list[dict[str, Any]]:
    for line in done.stdout.splitlines():
        if line.startswith(MARK):
            return json.loads(line.removeprefix(MARK))
    raise RuntimeError(f"{what} gave no result: status {done.returncode}\n{done.stderr}")


def _torch(models: list[str], ranks: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """PyTorch's rows for the same jobs; none if that Python has no torch."""
    if shutil.which(options.torch) is None:
        raise ValueError(f"--torch {options.torch}: there is no such program")
    check = [options.torch, "-c", "import torch"]
    if subprocess.run(check, capture_output=True, check=False).returncode:
        return []
    jobs = {model: JOBS[model].batch for model in models}
    here = str(Path(__file__).parents[2])  # that Python need not have minidist installed
    processes = [
        subprocess.Popen(
            [options.torch, "-m", "minidist.bench.peer_ddp", json.dumps(jobs), str(options.steps)],
            env=mpi_environment()
            | {
                "PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(20000 + os.getpid() % 20000),
                "RANK": str(rank),
                "WORLD_SIZE": str(ranks),
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    printed = [process.communicate()[0] for process in processes]
    return json.loads(printed[0].splitlines()[-1])


def _worker(models: list[str], steps: int) -> int:
    """On every MPI rank: time each job, and print what rank 0 found."""

    def main(comm: Comm) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for model in models:
            rows += _time_job(model, comm, steps)
        return rows

    rows = launch(main)[0]
    if int(os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK", "0"))) == 0:
        print(MARK + json.dumps(rows), flush=True)
    return 0


def _time_job(name: str, comm: Comm, steps: int) -> list[dict[str, Any]]:
    job = JOBS[name]
    dataset = job.data()
    alone = comm.split(comm.rank)

    def overlapped(comm: Comm) -> Method:
        return Overlapped(
            job.model(), CrossEntropy(), job.optimizer(), comm, bucket_mb=job.bucket_mb
        )

    def flat(comm: Comm) -> Method:
        return DataParallel(job.model(), CrossEntropy(), job.optimizer(), comm)

    parts: dict[str, tuple[Callable[[Any], object], int]] = {}
    weak = job.batch * comm.size
    for kind, method in (("flat", flat(comm)), ("overlapped", overlapped(comm))):
        parts[f"strong, {kind}"] = method.step, job.batch
        parts[f"weak, {kind}"] = method.step, weak
    if comm.size > 1:
        method = flat(alone)
        gradient = method.model.flat.grad_and_loss
        parts["compute alone"] = method.step, job.batch
        parts["communicate alone"] = lambda batch: ring.all_reduce(comm, gradient), job.batch
    seconds = _interleaved(comm, dataset, parts, steps)
    return [
        _row(name, "minidist", comm.size, what, batch, seconds[what])
        for what, (_, batch) in parts.items()
    ]


def _interleaved(
    comm: Comm,
    dataset: Dataset,
    parts: dict[str, tuple[Callable[[Any], object], int]],
    steps: int,
) -> dict[str, list[float]]:
    """The slowest rank's time of each step of each part: one of each in turn, after two rounds.

    In turn, so that whatever else the machine does meets all of them alike.
    """
    times = np.zeros((len(parts), steps))
    for step in range(-2, steps):
        for index, (function, size) in enumerate(parts.values()):
            batch = Batches(dataset, size)[0]
            comm.barrier()
            start = time.perf_counter()
            function(batch)
            if step >= 0:
                times[index, step] = time.perf_counter() - start
    ring.all_reduce(comm, times, "max")
    return dict(zip(parts, times.tolist(), strict=True))


def _row(
    model: str, library: str, ranks: int, what: str, samples: int, seconds: list[float]
) -> dict[str, Any]:
    return {
        "model": model,
        "library": library,
        "ranks": ranks,
        "what": what,
        "seconds": median(seconds),
        "best_seconds": min(seconds),
        "samples_per_second": samples / median(seconds),
        "best_samples_per_second": samples / min(seconds),
        "times": seconds,
    }


def summary(rows: list[dict[str, Any]], figure: str = "best_samples_per_second") -> list[dict]:
    """For each model: speed-ups of 2 ranks over 1, the ratio to PyTorch, and what was hidden.

    ``efficiency``: both ranks computing alone, over both training together (weak, flat), each pair
    of steps measured one after the other. It is the share of time that is not spent on
    communication, and holds where a busy machine spoils the comparison with one rank.
    """
    found = []
    for model in dict.fromkeys(row["model"] for row in rows):
        by = {
            (row["library"], row["ranks"], row["what"]): row
            for row in rows
            if row["model"] == model
        }

        def rate(library: str, ranks: int, mode: str, by: dict = by) -> float | None:
            rates = [r[figure] for k, r in by.items() if k[:2] == (library, ranks) and mode in k[2]]
            return max(rates, default=None)

        for mode in ("strong", "weak"):
            one, two = rate("minidist", 1, mode), rate("minidist", 2, mode)
            peer_1, peer_2 = rate("torch", 1, mode), rate("torch", 2, mode)
            found.append(
                {
                    "model": model,
                    "mode": mode,
                    "speedup": two / one if one and two else None,
                    "over_torch_1": one / peer_1 if peer_1 and one else None,
                    "over_torch_2": two / peer_2 if peer_2 and two else None,
                }
            )
        if ("minidist", 2, "compute alone") in by:
            compute, wire, plain, both = (
                np.array(by["minidist", 2, what]["times"])
                for what in ("compute alone", "communicate alone", "weak, flat", "weak, overlapped")
            )
            found[-1]["efficiency"] = float(np.median(compute / plain))
            found[-1]["hidden"] = float(np.median((compute + wire - both) / wire))
    return found


# The virtual part


def _virtual(largest: int) -> list[dict[str, Any]]:
    """Weak scaling of a small MLP, 32 images a rank: measured on the virtual clock, and formula."""
    dataset = _images()
    rows = []
    for machine in MACHINES:
        for ranks in [1, *(p for p in RANKS if p <= largest)]:
            batch = Batches(Dataset("small", *_cut(dataset, 32 * ranks), 10), 32 * ranks)[0]

            def job(comm: Comm, batch: Any = batch, machine: Machine = machine) -> Any:
                method = Overlapped(
                    mlp(SMALL), CrossEntropy(), SGD(0.05), comm, bucket_mb=0.01, last_mb=0
                )
                comm.barrier()
                start = comm.time()
                method.step(batch)
                seconds = comm.time() - start
                return seconds, method.cost(batch, machine).seconds if comm.rank == 0 else 0.0

            results = launch(job, ranks, LocalWorld(machine))
            rows.append(
                {
                    "machine": machine.name,
                    "ranks": ranks,
                    "seconds": max(measured for measured, _ in results),
                    "predicted_seconds": results[0][1],
                }
            )
    return rows


def _cut(dataset: Dataset, count: int) -> tuple[np.ndarray, np.ndarray]:
    index = np.arange(count) % len(dataset)
    return dataset.inputs[index], dataset.targets[index]


# What people see


def _show(report: dict[str, Any], console: Console, folder: Path) -> None:
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
    for row in summary(report["real"]):
        facts = {
            "2 ranks over 1": row["speedup"],
            "over PyTorch, 1 rank": row["over_torch_1"],
            "over PyTorch DDP, 2 ranks": row["over_torch_2"],
            "efficiency at 2 ranks": row.get("efficiency"),
            "communication hidden": row.get("hidden"),
        }
        text = ", ".join(f"{name} {v:.2f}" for name, v in facts.items() if v is not None)
        console.print(f"{row['model']} {row['mode']}: {text}")
    for row in report["virtual"]:
        gap = abs(row["seconds"] / row["predicted_seconds"] - 1)
        console.print(
            f"{row['machine']:10} {row['ranks']:4} ranks {row['seconds'] * 1e3:9.3f} ms, "
            f"formula off by {gap:.0e}",
            highlight=False,
        )
    console.print(f"wrote {folder}/scaling.json and {folder}/scaling.png", highlight=False)


def draw(report: dict[str, Any], path: Path) -> None:
    """Samples a second, measured; and efficiency on many virtual ranks, with the formula."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    real, virtual = report["real"], report["virtual"]
    models = list(dict.fromkeys(row["model"] for row in real))
    figure = Figure(figsize=(4.6 * (len(models) + 1.4), 4.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(
        1, len(models) + 1, squeeze=False, width_ratios=[1] * len(models) + [1.4]
    )
    colours = {"minidist": "#2f6690", "torch": "#f2a65a"}
    for axes, model in zip(panels[0], models, strict=False):
        place, labels = 0.0, list[str]()
        for mode in ("strong", "weak"):
            for ranks in (1, 2):
                for library, colour in colours.items():
                    rates = [
                        row["best_samples_per_second"]
                        for row in real
                        if (row["model"], row["library"], row["ranks"]) == (model, library, ranks)
                        and mode in row["what"]
                    ]
                    if rates:
                        name = library if not labels or library not in labels else None
                        axes.bar(place, max(rates), 0.9, color=colour, label=name)
                        labels.append(library)
                        place += 1
                place += 0.4
            place += 0.5
        axes.set_title(f"{model}: samples a second, best step", loc="left")
        axes.set_xlabel("strong: 1, 2 ranks      weak: 1, 2 ranks")
        axes.set_xticks([])
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    axes = panels[0][-1]
    for name, colour in zip(
        dict.fromkeys(row["machine"] for row in virtual),
        ("#2f6690", "#c8553d", "#4c9f70"),
        strict=False,
    ):
        rows = [row for row in virtual if row["machine"] == name]
        one = rows[0]["predicted_seconds"]
        x = [row["ranks"] for row in rows]
        axes.plot(x, [one / r["predicted_seconds"] for r in rows], color=colour, label=name)
        axes.plot(x, [one / r["seconds"] for r in rows], "o", color=colour)
    axes.set_xscale("log", base=2)
    axes.set_xticks(x, [str(ranks) for ranks in x])
    axes.set_ylim(0, 1.05)
    axes.set_xlabel("ranks")
    axes.set_title("weak scaling efficiency: dots measured, lines formula", loc="left")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
