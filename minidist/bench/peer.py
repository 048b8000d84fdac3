"""A library that the engine is compared with, in a process of its own.

    python -m minidist.bench.peer torch cpu float32 wall

It reads lines. A case's name: it builds the training step of that case (of one product of two
numbers, if the line is empty). A number: it runs the step so many times, and answers with the mean
seconds of a step. A process of its own, because what we set for memory (see
``run/environment.py``) would help the other library too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec

from minidist.bench.cases import cases
from minidist.bench.timing import CPU, WALL, Step, seconds_of

# By column: what must be installed, our module for it, and on which devices it is compared.
PEERS = {
    "torch": ("torch", "peer_torch", ("cpu", "cuda")),
    "fused": ("torch", "peer_torch", ("cpu", "cuda")),
    "jax": ("jax", "peer_jax", ("cpu",)),
    "autograd": ("autograd", "peer_autograd", ("cpu",)),
}
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "JAX_PLATFORMS": "cpu",
}


def installed(device: str) -> list[str]:
    """The columns whose library is installed."""
    return [
        name
        for name, (library, _, devices) in PEERS.items()
        if device.partition(":")[0] in devices and find_spec(library) is not None
    ]


class Peer:
    """A library's process: ``load`` a case, then ask for ``seconds``.

    Raises RuntimeError, with the library's own words, if the process ends.
    """

    def __init__(self, name: str, device: str, dtype: str, clock: str) -> None:
        environment = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, "-m", "minidist.bench.peer", name, device, dtype, clock],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment | ONE_THREAD,
        )

    def load(self, case: str) -> Peer:
        """Build the training step of a case, by name, or of one product of two numbers: ""."""
        self._ask(case)
        return self

    def seconds(self, runs: int) -> float:
        """The mean seconds of so many runs of the step."""
        return float(self._ask(str(runs)))

    def _ask(self, line: str) -> str:
        assert self.process.stdin is not None and self.process.stdout is not None
        with suppress(BrokenPipeError):  # it has ended, and says why
            print(line, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            _, said = self.process.communicate()
            why = said.strip().splitlines()[-1:] or [f"status {self.process.returncode}"]
            raise RuntimeError(f"{self.name}'s process ended: {why[0]}")
        return answer

    def close(self) -> None:
        with suppress(BrokenPipeError, ValueError):  # ValueError: its end was seen already
            self.process.communicate("")  # the end of its input


@contextmanager
def started(device: str, dtype: str = "float32", clock: str = "wall") -> Iterator[list[Peer]]:
    """The processes of all installed libraries. On the host none of them is asked for float16."""
    names = installed(device) if dtype == "float32" or device.startswith("cuda") else []
    found = [Peer(name, device, dtype, clock) for name in names]
    try:
        yield found
    finally:
        for peer in found:
            peer.close()


def step_of(name: str, case: str, device: str, dtype: str) -> Step:
    """What the process runs."""
    module = import_module(f"minidist.bench.{PEERS[name][1]}")
    if not case:
        return module.one_element(device)
    options = {"fused": True} if name == "fused" else {}
    (found,) = [one for one in cases() if one.name == case]
    return module.step(found, device, dtype, **options)


def main(name: str, device: str, dtype: str, clock: str) -> None:
    step: Step = lambda: None
    for line in map(str.rstrip, sys.stdin):
        if line.isdecimal():
            print(seconds_of(step, int(line), CPU if clock == "cpu" else WALL), flush=True)
        else:
            step = step_of(name, line, device, dtype)
            print("ready", flush=True)


def stay_on_one_core() -> None:
    """Of this process: XLA makes a thread for each core it may use, whatever its flags say."""
    if hasattr(os, "sched_setaffinity"):  # on Linux
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


if __name__ == "__main__":
    if sys.argv[2] == "cpu":
        stay_on_one_core()
    main(*sys.argv[1:])
