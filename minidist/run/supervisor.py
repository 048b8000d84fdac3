"""``minidist run``: start ranks, and stay until every one of them has said that it is done.

A status is not trusted: a rank that leaves by ``os._exit(0)`` ends a whole job with status 0. Each
rank has a line to the supervisor (``comm/link.py``), on which it says that it has failed, or that
it has finished. A line that ends without either is a rank that was lost. Whatever happened first is
what is reported; the other ranks are asked what they do before they are ended.

With ``restarts`` a job that failed is started again, with ``MINIDIST_RESTART`` = 1, 2, ... in the
environment; the program finds its last checkpoint itself. ``min_ranks`` lets it start with fewer:
without the ranks that were killed and those on machines that cannot be reached.

Nothing here waits without a limit: the launcher is killed if it does not end by itself.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

from minidist.comm.link import SUPERVISOR
from minidist.comm.mpi.room import check_room
from minidist.run import leftovers
from minidist.run.input import Input
from minidist.run.launcher import Launcher, environment, find_launcher
from minidist.run.lines import Lines, Rank
from minidist.run.report import Failure, report

RESTART = "MINIDIST_RESTART"
RANKS = "MINIDIST_RANKS"  # how many were asked for: a launcher may start fewer
ANSWERING = 1.0  # seconds that ranks have to say what they do
ENDING = 5.0  # seconds that a launcher has to end, before it is killed
LINGERING = 10.0  # seconds from the mark of the last rank to the end of the launcher


class Job:
    """A program to run on ``ranks`` ranks: a script with its arguments, or "-m" and a module."""

    def __init__(
        self,
        program: Sequence[str],
        ranks: int,
        *,
        restarts: int = 0,
        min_ranks: int | None = None,
        hosts: str | None = None,
        threads: int | str | None = None,
        mpiexec: str | None = None,
        extra: dict[str, str] | None = None,
        python: Sequence[str] = (),
    ) -> None:
        """``extra``: more of the environment; ``python``: options of the interpreter."""
        if ranks < 1:
            raise ValueError(f"a job needs at least one rank, not {ranks}")
        if restarts < 0:
            raise ValueError(f"--restarts must be 0 or more, not {restarts}")
        if isinstance(threads, int) and threads < 1:
            raise ValueError(f"--threads must be at least 1, not {threads}")
        if program[0] != "-m" and not Path(program[0]).is_file():
            raise ValueError(f"there is no script {program[0]}")
        if min_ranks is not None and not 1 <= min_ranks <= ranks:
            raise ValueError(f"--min-ranks must be 1 to {ranks}, the ranks, not {min_ranks}")
        if hosts is not None and not Path(hosts).is_file():
            raise ValueError(f"there is no host file {hosts}")
        self.program, self.ranks = list(program), ranks
        self.restarts, self.min_ranks, self.hosts = restarts, min_ranks, hosts
        self.environment = environment(threads) | (extra or {})
        self.launcher: Launcher = find_launcher(mpiexec)
        if hosts is not None:  # fill each machine's slots, not the first machine
            self.environment.pop("PRTE_MCA_rmaps_default_mapping_policy", None)
        self.python = list(python)
        self.interrupted = 0  # the signal that this process has got
        self.process: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        """Run the job, again after failures if it may; returns the exit status."""
        before = {number: signal.signal(number, self._forward) for number in FORWARDED}
        try:
            return self._run()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _run(self) -> int:
        ranks, hosts, failure = self.ranks, self.hosts, None
        with tempfile.TemporaryDirectory(prefix="minidist-run-") as folder:
            for attempt in range(self.restarts + 1):
                check_room(ranks)
                failure = self._attempt(ranks, hosts, attempt)
                if failure is None:
                    return 0
                sys.stdout.flush()
                print(report(failure), file=sys.stderr, flush=True)
                if self.interrupted:
                    return 128 + self.interrupted
                if attempt == self.restarts:
                    break
                if self.min_ranks is not None:
                    left = max(ranks - len(failure.lost), self.min_ranks)
                    if failure.machines and hosts is not None:
                        hosts = without(hosts, failure.machines, folder)
                        if slots(hosts) < self.min_ranks:
                            print("too few machines are left", file=sys.stderr)
                            break
                        left = min(left, slots(hosts))
                    ranks = left
                print(
                    f"minidist run: restart {attempt + 1} of {self.restarts}, with {ranks} ranks",
                    file=sys.stderr,
                    flush=True,
                )
        return (failure.status if failure else 0) or 1

    def _attempt(self, ranks: int, hosts: str | None, attempt: int) -> Failure | None:
        """Start all ranks once, and watch them to their end; None if all have finished."""
        began, token = time.time(), secrets.token_hex(8)
        everywhere = hosts is not None or self._several()
        with (
            leftovers.removed(),
            Lines(ranks, token, everywhere) as lines,
            nullcontext({}) if everywhere else Input() as reading,
        ):
            program = [sys.executable, *self.python, "-m", "minidist.run.rank", *self.program]
            known = (
                self.environment
                | reading
                | {
                    SUPERVISOR: lines.address,
                    RESTART: str(attempt),
                    RANKS: str(ranks),
                }
            )
            command = self.launcher.command(ranks, hosts, program)
            self.process = subprocess.Popen(
                command,
                env=known,
                stdin=self._input() if everywhere else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                process_group=0,
            )
            try:
                failure = self._watch(lines)
            finally:
                self._end(lines)
        if failure is not None:
            failure.seconds = failure.at - began
        return failure

    def _several(self) -> bool:
        return self.launcher.library == "Slurm" or os.environ.get("SLURM_NNODES", "1") != "1"

    def _input(self) -> int | None:
        """What the launcher reads; not a terminal, which would stop it (SIGTTIN)."""
        return subprocess.DEVNULL if sys.stdin is None or sys.stdin.isatty() else None

    def _forward(self, number: int, frame: object) -> None:
        """A signal to this process is one to the job; the second ends it at once."""
        if self.interrupted and self.process is not None:
            kill_group(self.process, signal.SIGKILL)
        self.interrupted = number
        if self.process is not None:
            kill_group(self.process, number)

    def _watch(self, lines: Lines) -> Failure | None:
        """Until all ranks are done, or the first has failed."""
        process = self.process
        assert process is not None and process.stdout is not None and process.stderr is not None
        sys.stdout.flush()
        lines.follow(process.stdout, sys.stdout.buffer)
        lines.follow(process.stderr, sys.stderr.buffer)
        ended = finished = 0.0
        while True:
            lines.listen(0.1)
            now = time.time()
            if (failed := lines.first_failure()) is not None:
                return self._failure(lines, failed)
            status = process.poll()
            if lines.all_done():
                finished = finished or now
                if status == 0:
                    return None
                if status is not None:
                    return Failure(None, f"the launcher ended with status {status}", status, now)
                if now - finished > LINGERING:
                    return None  # every rank is done: it has nothing left to wait for
            elif status is not None:
                ended = ended or now
                if now - ended > 1:  # lines that ended have been noticed by now
                    return self._gone(lines, status, now)
            if self.interrupted and now - lines.began > 0:
                ended = ended or now
                if now - ended > ENDING:
                    return Failure(None, self._signal(), 128 + self.interrupted, now)

    def _gone(self, lines: Lines, status: int, now: float) -> Failure:
        if self.interrupted:
            return Failure(None, self._signal(), 128 + self.interrupted, now)
        said = b"".join(lines.kept[-20:]).decode(errors="replace").strip()
        called = sorted(rank.number for rank in lines.ranks.values() if rank.pid)
        text = f"the launcher ended with status {status}, and " + (
            f"of {len(lines.ranks)} ranks only {called} had called"
            if called
            else "no rank had called"
        )
        return Failure(None, f"{text}:\n{said}" if said else text, status or 1, now)

    def _signal(self) -> str:
        return f"the job was ended by {signal.Signals(self.interrupted).name}"

    def _failure(self, lines: Lines, failed: Rank) -> Failure:
        """What happened first; then the other ranks say what they do."""
        now = time.time()
        lines.ask(ANSWERING)
        if self.interrupted:
            return Failure(None, self._signal(), 128 + self.interrupted, now)
        others = {one.number: one.last(now) for one in lines.ranks.values() if one is not failed}
        machines = sorted({one.machine for one in lines.ranks.values() if one.unreachable})
        lost = [one.number for one in lines.ranks.values() if one.unreachable]
        if failed.failed is None and failed.number not in lost:
            lost.append(failed.number)
        text = failed.failed or failed.lost()
        return Failure(failed, text, failed.status, now, others, lost, machines)

    def _end(self, lines: Lines) -> None:
        """End what is left: by a word to the ranks, by signals to the launcher and to the ranks."""
        process = self.process
        assert process is not None
        lines.end()
        if process.poll() is None and not lines.all_done():
            kill_group(process, signal.SIGTERM)
        until = time.time() + ENDING
        while process.poll() is None and time.time() < until:
            lines.listen(0.05)
        kill_group(process, signal.SIGKILL)
        process.wait()
        lines.kill_ranks()


FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def start(program: Sequence[str], ranks: int, **options: object) -> int:
    """Run a program on ranks, to its end; returns the exit status. See ``Job``."""
    return Job(program, ranks, **options).run()  # type: ignore[arg-type]


def kill_group(process: subprocess.Popen[bytes], number: int) -> None:
    """A signal to the launcher and what it has started in its group."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def without(hosts: str, machines: Sequence[str], folder: str) -> str:
    """A host file like ``hosts``, without these machines; returns its path."""
    lines = [
        line
        for line in Path(hosts).read_text().splitlines()
        if re.split(r"[\s:]", line.strip())[0] not in machines
    ]
    path = Path(folder) / f"hosts-{len(os.listdir(folder))}"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def slots(hosts: str) -> int:
    """How many ranks the machines of a host file take: "name:2", or "name slots=2"."""
    total = 0
    for line in Path(hosts).read_text().splitlines():
        line = line.partition("#")[0].strip()
        if line:
            found = re.search(r"(?:slots=|:)(\d+)", line)
            total += int(found[1]) if found else 1
    return total
