"""The supervisor's ends of the lines to all ranks: who has called, failed, finished, or is lost."""

from __future__ import annotations

import errno
import json
import os
import selectors
import signal
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from minidist.comm.link import STARTING, SUPERVISOR, keep_alive
from minidist.run.output import Output

UNREACHABLE = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)


@dataclass
class Rank:
    """What is known of one rank."""

    number: int
    line: socket.socket | None = None
    pid: int = 0
    machine: str = ""
    done: bool = False
    failed: str | None = None  # why, in its own words
    status: int = 1
    at: float = 0.0  # when it failed, had finished, or its line ended
    unreachable: bool = False
    doing: str = ""
    asked: float = 0.0  # when it last said what it does
    unread: bytes = field(default=b"", repr=False)

    def lost(self) -> str:
        """Why a rank is taken for lost."""
        if self.unreachable:
            return f"rank {self.number}: the machine {self.machine} cannot be reached any longer"
        return (
            f"rank {self.number} ended without an exception and without having finished: it was "
            "killed (perhaps for want of memory), crashed in a library, or called os._exit"
            + (f". What it did last: {self.doing}" if self.doing else "")
        )

    def waits_for_all(self, since: float) -> bool:
        """Whether it has said after ``since`` that it waits until all ranks are there."""
        return not self.done and self.asked > since and self.doing.startswith(STARTING)

    def last(self, now: float) -> str:
        """What it does, or did when it was last asked."""
        if self.done:
            return "had finished"
        if self.failed is not None:
            return self.failed.splitlines()[0]
        if self.line is None and self.pid:
            before = f"; before: {self.doing}" if self.doing else ""
            return "ended at nearly the same time" + before
        if not self.asked:
            return "had not called so far" if not self.pid else "gives no answer"
        return self.doing + ("" if now - self.asked < 2 else f" ({now - self.asked:.0f} s before)")


class Lines:
    """Listens for ``ranks`` ranks that know the token."""

    def __init__(self, ranks: int, token: str, everywhere: bool) -> None:
        self.ranks = {number: Rank(number) for number in range(ranks)}
        self.token = token
        self.began = time.time()
        self.select = selectors.DefaultSelector()
        at = "0.0.0.0" if everywhere else "127.0.0.1"
        self.server = socket.create_server((at, 0), backlog=512)
        self.select.register(self.server, selectors.EVENT_READ)
        names = own_addresses() if everywhere else ["127.0.0.1"]
        self.address = f"{','.join(names)}:{self.server.getsockname()[1]}:{token}"
        self.kept: list[bytes] = []  # the last lines of what the launcher and all ranks print
        self.strangers: dict[socket.socket, Rank] = {}
        self.next_question = 0.0

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *error: object) -> None:
        for rank in self.ranks.values():
            if rank.line is not None:
                rank.line.close()
        for line in self.strangers:
            line.close()
        self.server.close()
        self.select.close()

    def follow(self, pipe: IO[bytes], into: IO[bytes]) -> None:
        """Pass on what the launcher and all ranks print, too."""
        os.set_blocking(pipe.fileno(), False)
        self.select.register(pipe, selectors.EVENT_READ, Output(pipe, into, self.kept))

    def listen(self, seconds: float) -> None:
        """Take what comes in this time, and ask each rank once a second what it does."""
        for key, _ in self.select.select(seconds):
            if key.fileobj is self.server:
                line, _ = self.server.accept()
                keep_alive(line)
                line.setblocking(False)
                self.strangers[line] = Rank(-1, line)
                self.select.register(line, selectors.EVENT_READ, self.strangers[line])
            elif isinstance(key.data, Output):
                if not key.data.read():
                    self.select.unregister(key.fileobj)
            else:
                self._read(key.data)
        if time.time() > self.next_question:
            self.next_question = time.time() + 1
            self.tell(ask=True)

    def _read(self, rank: Rank) -> None:
        assert rank.line is not None
        try:
            data = rank.line.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError as error:
            data = b""
            rank.unreachable = error.errno in UNREACHABLE
        if not data:
            self.select.unregister(rank.line)
            rank.line.close()
            self.strangers.pop(rank.line, None)
            rank.line, rank.at = None, rank.at or time.time()
            return
        *whole, rank.unread = (rank.unread + data).split(b"\n")
        for line in whole:
            rank = self._take(rank, json.loads(line))

    def _take(self, rank: Rank, message: dict[str, Any]) -> Rank:
        """Take a message of ``rank``; returns the rank that the next one on this line is of."""
        line = rank.line
        if line is None:
            return rank
        if "hello" in message:
            number = message["hello"]
            if message.get("token") != self.token or number not in self.ranks:
                self.select.unregister(line)
                del self.strangers[line]
                line.close()
                rank.line = None
                return rank
            known = self.ranks[number]
            known.line, known.unread = line, rank.unread
            known.pid, known.machine = message["pid"], message["machine"]
            self.select.modify(line, selectors.EVENT_READ, known)
            del self.strangers[line]
            return known
        if rank.number < 0:
            return rank  # it has not said the token
        if "doing" in message:
            rank.doing, rank.asked = message["doing"], time.time()
        elif "failed" in message:
            rank.failed, rank.status, rank.at = message["failed"], message["status"], time.time()
        elif "done" in message:
            rank.done, rank.at = True, time.time()
        return rank

    def tell(self, **message: Any) -> None:
        """Send a message to all ranks that are there."""
        data = json.dumps(message).encode() + b"\n"
        for rank in self.ranks.values():
            if rank.line is not None:
                try:
                    rank.line.send(data)
                except OSError:
                    continue  # its end will be read

    def first_failure(self) -> Rank | None:
        """The rank that failed first, or was lost first."""
        for rank in self.ranks.values():
            if rank.done and any(one.waits_for_all(rank.at) for one in self.ranks.values()):
                rank.failed = (
                    f"rank {rank.number} has ended with status 0 before its first launch, and the "
                    "others wait for it in theirs"
                )
        gone = [
            rank
            for rank in self.ranks.values()
            if rank.failed is not None or (rank.pid and rank.line is None and not rank.done)
        ]
        return min(gone, key=lambda rank: rank.at, default=None)

    def all_done(self) -> bool:
        return all(rank.done for rank in self.ranks.values())

    def ask(self, seconds: float) -> None:
        """Ask all ranks what they do, and wait for the answers so long."""
        asked, until = time.time(), time.time() + seconds
        self.tell(ask=True)
        while time.time() < until:
            self.listen(0.02)
            living = [one for one in self.ranks.values() if one.line is not None]
            if all(one.asked >= asked or one.failed for one in living):
                break

    def end(self) -> None:
        """Let ranks that have failed, and wait to be heard, go."""
        self.tell(end=True)

    def kill_ranks(self) -> None:
        """End ranks on this machine that have outlived their launcher."""
        for rank in self.ranks.values():
            if rank.pid and rank.machine == socket.gethostname() and self._is_ours(rank.pid):
                try:
                    os.kill(rank.pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue

    def _is_ours(self, pid: int) -> bool:
        """Whether this process is still the rank: its number may have been given to another."""
        try:
            found = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False
        return f"{SUPERVISOR}={self.address}".encode() in found


def own_addresses() -> list[str]:
    """Names and addresses by which other machines may reach this one."""
    found = []
    for target in ("10.255.255.255", "192.168.255.255", "172.31.255.255", "8.8.8.8"):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((target, 9))  # sends nothing: chooses the way
                found.append(probe.getsockname()[0])
            except OSError:
                continue
    return list(dict.fromkeys([*found, socket.gethostname(), "127.0.0.1"]))
