"""A rank's connection to its supervisor, ``minidist run``: a socket that carries lines of JSON.

It does not need MPI, so it works before MPI has started, after it has ended, and while a rank hangs
in it. A thread answers what the supervisor asks. The kernel tells each side when the other process
has ended or the other machine cannot be reached any longer (keepalive), however busy Python is. A
rank that has lost its supervisor ends itself, and the helper process of its launcher.

    rank → supervisor    hello, doing, failed, done
    supervisor → rank    ask, end
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

SUPERVISOR = (
    "MINIDIST_RUN"  # addresses separated by commas, port and token: "10.0.0.1,vm:4711:a1b2"
)
STARTING = "MPI_Init, which waits for all ranks"  # the call that a starting rank is in
UNREACHABLE = 15  # seconds without a sign of the other machine
HELPERS = ("hydra_pmi_proxy", "prted", "orted")  # processes of launchers that start ranks

_current: Link | None = None


def current() -> Link | None:
    """This process's connection, if ``minidist run`` started it and ``open_line`` was called."""
    return _current


def open_line(rank: int) -> Link | None:
    """Connect to the supervisor that the environment names; None if it names none.

    Raises ConnectionError if no supervisor answers there.
    """
    global _current
    named = os.environ.get(SUPERVISOR)
    if named is None:
        return None
    addresses, port, token = named.rsplit(":", 2)
    found = None
    for address in addresses.split(","):
        try:
            found = socket.create_connection((address, int(port)), timeout=5)
            break
        except OSError:
            continue
    if found is None:
        raise ConnectionError(f"rank {rank} cannot reach minidist run at {addresses} port {port}")
    _current = Link(found, rank)
    _current.tell(
        hello=rank, token=token, pid=os.getpid(), machine=socket.gethostname(), parent=os.getppid()
    )
    _current.start()
    return _current


def keep_alive(line: socket.socket) -> None:
    """Let the kernel find out within ``UNREACHABLE`` seconds that the other machine is gone."""
    line.settimeout(None)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in (
        ("TCP_KEEPIDLE", UNREACHABLE // 3),
        ("TCP_KEEPINTVL", UNREACHABLE // 3),
        ("TCP_KEEPCNT", 2),
        ("TCP_USER_TIMEOUT", 1000 * UNREACHABLE),
    ):
        if hasattr(socket, name):  # not everywhere
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class Link(threading.Thread):
    """The rank's end of the connection. ``describe()`` says what the rank is doing."""

    def __init__(self, line: socket.socket, rank: int) -> None:
        super().__init__(name="line to minidist run", daemon=True)
        self.line, self.rank = line, rank
        self.describe: Callable[[], str] = lambda: "starts"
        self.heard = threading.Event()  # the supervisor has confirmed that it knows of a failure
        self.finished = False
        self.writing = threading.Lock()
        keep_alive(line)

    def tell(self, **message: Any) -> bool:
        """Send one message; returns whether it could be sent."""
        try:
            with self.writing:
                self.line.sendall(json.dumps(message).encode() + b"\n")
            return True
        except OSError:
            return False

    def failed(self, text: str, status: int) -> bool:
        """Report a failure, and wait for the supervisor's answer; returns whether it came."""
        return self.tell(failed=text, status=status) and self.heard.wait(3)

    def done(self, status: int) -> None:
        """Report that this rank has finished. A job counts as failed unless every rank does."""
        self.finished = True
        if status == 0:
            self.tell(done=True)

    def run(self) -> None:
        try:
            for line in self.line.makefile("r"):
                message = json.loads(line)
                if "ask" in message:
                    self.tell(doing=self.describe())
                if "end" in message:
                    self.heard.set()
        except (OSError, ValueError):
            pass
        if not self.finished:
            self._alone()

    def _alone(self) -> None:
        """The supervisor or its machine is gone, so nothing else would end this rank."""
        parent = os.getppid()
        if program(parent) in HELPERS:
            kill(parent)
        kill(os.getpid())


def program(pid: int) -> str:
    """The name of a process's program; "" if that is not known."""
    try:
        with open(f"/proc/{pid}/comm") as name:
            return name.read().strip()
    except OSError:
        return ""


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError as error:
        print(f"cannot end process {pid}: {error}", file=sys.stderr)
