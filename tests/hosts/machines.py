"""Two emulated machines: each has a network, a host name, files of its own in /dev/shm.

They are Linux namespaces, with a cable between them that can be cut. A script stands in for ssh. It
needs the right to make namespaces (root, in most containers), and no network.

    with Machines() as machines:
        machines.run("minidist", "run", "--hosts", machines.hosts, ...)   # on the first
        machines.cut()
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import mkdtemp

from tests.mpi.run import ROOT

NAMES, ADDRESSES = ("machine0", "machine1"), ("10.77.0.1", "10.77.0.2")
SETUP = """
hostname {name}
mount --bind {folder}/hosts /etc/hosts
mount -t tmpfs -o size=256m tmpfs /dev/shm
ip link set lo up
touch {folder}/{name}.ready
exec sleep 3600
"""
REMOTE = """#!/bin/sh
# In place of ssh: options, the machine, and the command that runs on it.
while [ "${{1#-}}" != "$1" ]; do shift; done
case "$1" in {cases} *) echo "no machine $1" >&2; exit 1 ;; esac
shift
exec nsenter -t $pid -n -u -m sh -c "$*"
"""


def allowed() -> bool:
    """Whether this process may make namespaces."""
    if not all(map(shutil.which, ("unshare", "nsenter", "ip"))):
        return False
    add = "ip link add cable0 type veth peer name cable1"
    command = ["unshare", "--net", "--uts", "--mount", *add.split()]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


class Machines:
    """Two machines of two ranks each."""

    def __enter__(self) -> Machines:
        self.folder = Path(mkdtemp(prefix="minidist-hosts-"))
        lines = [f"{at} {name}\n" for at, name in zip(ADDRESSES, NAMES, strict=True)]
        (self.folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(lines))
        self.inside = [
            subprocess.Popen(
                [
                    "unshare",
                    "--net",
                    "--uts",
                    "--mount",
                    "sh",
                    "-c",
                    SETUP.format(name=name, folder=self.folder),
                ]
            )
            for name in NAMES
        ]
        while not all((self.folder / f"{name}.ready").exists() for name in NAMES):
            time.sleep(0.02)
        pids = [str(process.pid) for process in self.inside]
        ip("link", "add", "cable0", "netns", pids[0], "type", "veth",
           "peer", "name", "cable1", "netns", pids[1])  # fmt: skip
        for number, address in enumerate(ADDRESSES):
            self.on(number, "ip", "addr", "add", f"{address}/24", "dev", f"cable{number}")
            self.on(number, "ip", "link", "set", f"cable{number}", "up")
        cases = " ".join(
            f"{name}|{at}) pid={pid} ;;"
            for name, at, pid in zip(NAMES, ADDRESSES, pids, strict=True)
        )
        self.remote = self.folder / "remote"
        self.remote.write_text(REMOTE.format(cases=cases))
        self.remote.chmod(0o755)
        self.hosts = str(self.folder / "machines")
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.inside:
            process.kill()
            process.wait()
        shutil.rmtree(self.folder)

    def use(self, open_mpi: bool) -> dict[str, str]:
        """Write the host file in the library's form; the environment that uses ``remote``."""
        form = "{} slots=2\n" if open_mpi else "{}:2\n"
        Path(self.hosts).write_text("".join(form.format(name) for name in NAMES))
        settings = {
            "HYDRA_LAUNCHER": "ssh",
            "HYDRA_LAUNCHER_EXEC": str(self.remote),
            "PRTE_MCA_plm_ssh_agent": str(self.remote),
            "PYTHONPATH": str(ROOT),
            "MINIDIST_TUNING": os.devnull,
            "OMP_NUM_THREADS": "1",
        }
        return {**os.environ, **settings}

    def on(self, number: int, *command: str) -> None:
        """Run a command on one machine."""
        subprocess.run([*self.enter(number), *command], check=True)

    def enter(self, number: int) -> list[str]:
        """What to put before a command, so that it runs on that machine."""
        return ["nsenter", "-t", str(self.inside[number].pid), "-n", "-u", "-m", f"--wd={ROOT}"]

    def start(self, *arguments: str, open_mpi: bool, **more: str) -> subprocess.Popen[str]:
        """``minidist ARGUMENTS``, on the first machine."""
        return subprocess.Popen(
            [*self.enter(0), sys.executable, "-m", "minidist", *arguments],
            cwd=ROOT,
            env=self.use(open_mpi) | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def cut(self) -> None:
        """Cut the cable."""
        self.on(1, "ip", "link", "set", "cable1", "down")

    def mend(self) -> None:
        self.on(1, "ip", "link", "set", "cable1", "up")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def running(marker: str) -> list[str]:
    """The commands of all processes that have this in their arguments."""
    done = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if marker in line]
