"""Jobs that take too long for every day. A second call goes on where the first one ended.

    make long                                    # every job that is not done yet
    python -m tests.long.run lesson4 compare     # some of them
    python -m tests.long.run --list              # what there is, and what is done
    python -m tests.long.run --again lesson4     # although it is done

A job is a command. What it prints goes to ``out/long/NAME.log``. When it has succeeded,
``out/long/NAME.done`` says when, how long it took, and which commit was checked out. A job that
fails stops no other; it has no done-mark, so the next call runs it again.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "out" / "long"


@dataclass(frozen=True)
class Job:
    """A command of arguments to this Python, run from the repository's root."""

    what: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


PYTEST = ("-m", "pytest", "-q", "--timeout=3600")
COMPARE = ("-m", "minidist", "compare")
COMPRESS = ("-m", "tests.long.compress")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
JOBS = {
    **{
        f"lesson{number}": Job(
            f"lesson {number} with LESSON=long",
            [f"lessons/{name}.py"],
            {"LESSON": "long", "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)},
        )
        for number, name in ((4, "04_training_for_real"), (23, "23_attention"))
    },
    "tests": Job(
        "the tests marked long: every case of what `make test` samples",
        [*PYTEST, "-m", "long", "tests"],
    ),
    "properties": Job(
        "every property test on 50 times as many examples, new ones each time",
        [*PYTEST, "-m", "hypothesis", "tests"],
        {"MINIDIST_EXAMPLES": "50"},
    ),
    "large_pipeline": Job(
        "a trillion parameters on a pipeline of 64 stages, without numbers",
        ["-m", "tests.long.large_pipeline"],
        ONE_THREAD,
    ),
    "federated_skew": Job(
        "accuracy against skew, of federated averaging and FedProx",
        ["-m", "minidist.privacy.skew", "out/long/skew"],
        ONE_THREAD,
    ),
    "lessons": Job(
        "every lesson under python, and on 1 to 4 real ranks of MPICH and of Open MPI",
        ["-m", "tests.long.lessons"],
    ),
    "answers": Job(
        "the numbers in the folded answers of the lessons, computed again",
        ["-m", "tests.long.answers"],
        ONE_THREAD,
    ),
    "notebooks": Job("every lesson as a notebook", ["-m", "tests.long.notebooks"]),
    "compare": Job(
        "500 steps by every method on 4 real ranks",
        [*COMPARE, "--world", "mpi", "--task", "mlp", "--methods", "all", "--steps", "500",
         "--out", "out/long/compare"],
    ),
    "every_task": Job(
        "compare with every task, by every method, on 1 to 8 ranks of both worlds",
        ["-m", "tests.long.every_task"],
        ONE_THREAD,
    ),
    "eight_ranks": Job(
        "every method on 8 simulated ranks, in float64",
        [*COMPARE, "--world", "local", "--ranks", "8", "--task", "mlp", "--steps", "50",
         "--dtype", "float64",
         "--methods", "data_parallel,zero,parameter_server,compression,local_sgd,gossip,easgd",
         "--out", "out/long/eight_ranks"],
    ),
    "mesh": Job(
        "tensor parallel, sequences and meshes of the GPT on 8 simulated ranks, in float64",
        [*COMPARE, "--world", "local", "--task", "gpt", "--mesh", "dp=2,pp=2,tp=2", "--steps",
         "20", "--batch", "32", "--dtype", "float64", "--methods", "zero,pipeline,tensor,mesh",
         "--out", "out/long/mesh"],
    ),
    "composition": Job(
        "480 compositions of dp, pp, tp, ZeRO, schedules and sequences against serial training",
        ["-m", "tests.long.composition"],
        ONE_THREAD,
    ),
    "mesh_mpi": Job(
        "every mesh of 2, 4 and 8 real ranks, against serial training and its formula",
        ["-m", "tests.mpi.mesh_program", "8"],
    ),
    "fuzz_graphs": Job(
        "10,000 random graphs of ops against PyTorch, or numeric slopes without it",
        ["-m", "tests.fuzz", "graphs", "--count", "10000"],
    ),
    "fuzz_layers": Job(
        "10,000 random stacks of layers, the same way",
        ["-m", "tests.fuzz", "layers", "--count", "10000", "--size", "7"],
    ),
    **{
        f"fuzz_training_{start}": Job(
            f"random training runs {start} to {start + 999} by every method against serial",
            ["-m", "tests.fuzz", "training", "--start", str(start), "--count", "1000"],
            ONE_THREAD,
        )
        for start in range(0, 5000, 1000)
    },
    "fuzz_mutants": Job(
        "the mutants of the tests, each hunted with up to 500 random training runs",
        ["-m", "tests.fuzz", "mutants"],
        ONE_THREAD,
    ),
    "mpi_again": Job(
        "the tests on real ranks ten times over: what fails now and then is found",
        ["-m", "tests.long.again", "10", "tests/mpi"],
    ),
    **{
        f"kills_{key}": Job(
            f"200 steps by {key} with 20 kills, started again by themselves, bitwise and on fewer "
            "ranks",
            [*PYTEST, "-s", "-m", "long", "-k", key, "tests/faults/test_kills.py"],
            ONE_THREAD,
        )
        for key in ("data_parallel", "zero", "pipeline", "parameter_server")
    },
    "corruptions": Job(
        "1,200 damaged checkpoints, half of them with hashes made right again",
        [*PYTEST, "-k", "a_corrupted_checkpoint_is_refused", "tests/checkpoint/test_corruption.py"],
        {"MINIDIST_EXAMPLES": "15"},
    ),
    "hosts": Job(
        "two emulated machines: training, compare and restarts (needs network namespaces)",
        [*PYTEST, "-m", "long", "tests/hosts"],
        ONE_THREAD,
    ),
    "hosts_cuts": Job(
        "the cable between two emulated machines cut at ten random moments",
        ["-m", "tests.hosts.cuts", "10"],
        ONE_THREAD,
    ),
    "shm": Job(
        "50 jobs that crash in a row, with 64 MB in /dev/shm (needs a private mount)",
        ["-m", "tests.faults.shm", "50", "--private"],
        ONE_THREAD,
    ),
    "launches": Job(
        "1,000 launches with two splits each in one process",
        ["-m", "minidist", "run", "-n", "2", "tests/faults/launches.py", "1000"],
        ONE_THREAD | {"PYTHONPATH": str(ROOT)},
    ),
    "fault_table": Job(
        "every fault, under minidist run, under mpirun and in the local world: the table of "
        "docs/faults.md",
        ["-m", "tests.faults.table", "out/long/faults.json"],
        ONE_THREAD,
    ),
    "compress_cnn": Job(
        "every way to make the CNN smaller, after 3000 steps", [*COMPRESS, "cnn"], ONE_THREAD
    ),
    "compress_gpt": Job(
        "every way to make the GPT smaller, after 3000 steps", [*COMPRESS, "gpt"], ONE_THREAD
    ),
    "compress_distil": Job(
        "a small MLP with and without a teacher, 5 seeds", [*COMPRESS, "distil"], ONE_THREAD
    ),
    "compress_lora": Job(
        "the GPT learns another text with LoRA, on two ranks", [*COMPRESS, "lora"], ONE_THREAD
    ),
    "private": Job(
        "accuracy against ε for three noise levels", ["-m", "tests.long.private"], ONE_THREAD
    ),
    "many_requests": Job(
        "throughput and waiting times of many requests",
        ["-m", "tests.long.many_requests"],
        ONE_THREAD,
    ),
}  # fmt: skip


def run(name: str, job: Job, folder: Path) -> bool:
    """Run one job; returns whether it succeeded."""
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / f"{name}.done"
    mark.unlink(missing_ok=True)
    start = time.monotonic()
    with (folder / f"{name}.log").open("w") as log:
        done = subprocess.run(
            [sys.executable, *job.command],
            cwd=ROOT,
            env=os.environ | job.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
    seconds = time.monotonic() - start
    if done.returncode == 0:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        mark.write_text(f"{now}, {seconds:.0f} s, commit {commit()}\n")
    return done.returncode == 0


def commit() -> str:
    """What is checked out, with "-dirty" if files differ; "unknown" outside a repository."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


def main(
    arguments: Sequence[str] | None = None,
    jobs: Mapping[str, Job] = JOBS,
    folder: Path = FOLDER,
) -> int:
    """Run what is wanted and not done; returns 1 if any job failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="JOB", help=", ".join(jobs))
    parser.add_argument("--list", action="store_true", help="say what there is and what is done")
    parser.add_argument("--again", action="store_true", help="run also what is done")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in jobs]
    if unknown:
        parser.error(f"no such job: {', '.join(unknown)}; choose among {', '.join(jobs)}")
    failed = []
    for name in options.names or jobs:
        mark = folder / f"{name}.done"
        if mark.exists() and (options.list or not options.again):
            print(f"{name}: done {mark.read_text().strip()}")
        elif options.list:
            print(f"{name}: to do: {jobs[name].what}")
        else:
            print(f"{name}: {jobs[name].what} (log: {folder / name}.log) ...", flush=True)
            if run(name, jobs[name], folder):
                print(f"{name}: done {mark.read_text().strip()}")
            else:
                failed.append(name)
                print(f"{name}: FAILED, the end of its log:")
                print("\n".join((folder / f"{name}.log").read_text().splitlines()[-20:]))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
