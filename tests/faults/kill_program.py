"""A run that saves every few steps and kills one of its ranks: started again and again.

    minidist run -n 3 --restarts 60 tests/faults/kill_program.py METHOD FOLDER STEPS KILLS SEED

SEED and the number of the restart say who dies, when and in the middle of what: between two
instructions (a timer), at the n-th message of a step, or at the n-th thing that it does to a file
of a checkpoint. After KILLS, which are listed in FOLDER/kills, nobody dies any longer. At the end
rank 0 exports the parameters to FOLDER/final.safetensors.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from functools import partial
from pathlib import Path

from minidist import launch
from minidist.checkpoint import Checkpoints, checkpoints, export_parameters, files
from minidist.data import Batches
from minidist.engine.array import defaults
from minidist.optim import AdamW
from tests.parallel.checks import Setting, make

EVERY = 4  # steps from one save to the next
SETTING = Setting(optimizer=lambda: AdamW(1e-2))


class Killer:
    """Kills this process by SIGKILL where it is told to: ``count`` events after it is armed."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.events: dict[str, int] = {}

    def arm(self, kind: str, count: int) -> None:
        self.events[kind] = count

    def event(self, kind: str) -> None:
        if kind in self.events:
            self.events[kind] -= 1
            if self.events[kind] < 0:
                self.die(kind)

    def die(self, kind: str = "time") -> None:
        with self.log.open("a") as file:
            file.write(f"{kind}\n")
        os.kill(os.getpid(), signal.SIGKILL)


def watch_files(killer: Killer) -> None:
    """Make an event of every step of a write: before, half-way, before fsync and renaming."""
    write_file, fsync, rename = files.write_file, os.fsync, os.rename

    def half(path, data):
        killer.event("file")
        if "file" in killer.events and killer.events["file"] == 0:
            path.write_bytes(data[: len(data) // 2])
            killer.event("file")
        write_file(path, data)
        killer.event("file")

    def before(function, *args):
        killer.event("file")
        function(*args)
        killer.event("file")

    files.write_file = checkpoints.files.write_file = half
    os.fsync, os.rename = partial(before, fsync), partial(before, rename)


def watch_messages(comm, killer: Killer) -> None:
    enter = comm._enter

    def counted(*args, **options):
        killer.event("message")
        return enter(*args, **options)

    comm._enter = counted


def main(comm, method_name, folder, steps, kills, seed):
    draw, log = random.Random(f"{seed} {os.environ['MINIDIST_RESTART']}"), folder / "kills"
    killed = len(log.read_text().splitlines()) if log.exists() else 0
    victim, kind = draw.randrange(comm.size), draw.choice(["time", "message", "file", "file"])
    killer, killed_at = Killer(log), draw.randint(1, 16)
    with defaults(dtype="float64"):
        method = make(method_name, comm, SETTING)
        batches = Batches(SETTING.dataset, SETTING.batch, SETTING.seed)
        overlapped = draw.random() < 0.5
        with Checkpoints(folder / "c", method, batches, overlapped=overlapped) as saves:
            start = saves.resume()
            watch_files(killer)
            watch_messages(comm, killer)
            for step in range(start, steps):
                if killed < kills and comm.rank == victim and step == start + killed_at:
                    if kind == "time":
                        threading.Timer(draw.uniform(0, 0.01), killer.die).start()
                    else:
                        killer.arm(kind, draw.randrange(12 if kind == "file" else 30))
                method.step(batches[step])
                if (step + 1) % EVERY == 0 or step + 1 == steps:
                    saves.save(step + 1)
        export_parameters(folder / "final.safetensors", method)


if __name__ == "__main__":
    method_name, folder, *numbers = sys.argv[1:]
    steps, kills, seed = map(int, numbers)
    arguments = {"method_name": method_name, "folder": Path(folder), "steps": steps}
    launch(partial(main, **arguments, kills=kills, seed=seed))
