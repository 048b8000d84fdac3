"""The simulator's objects (tasks, messages, meetings), and the words of a ``Deadlock``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minidist.comm.agreement import Claim
from minidist.comm.calls import describe_message, users_line
from minidist.comm.errors import Disagreement
from minidist.engine.array import Array


class Deadlock(RuntimeError):
    """No rank can go on: each waits for a message, or for a rank, that can never come."""


class Task:
    """One stream of one rank: a greenlet with a clock."""

    __slots__ = ("clock", "doing", "greenlet", "pending", "rank", "stream", "until")

    def __init__(self, rank: int, stream: str, clock: float) -> None:
        self.rank = rank
        self.stream = stream
        self.clock = clock
        self.doing: Any = None  # what it waits for; None while it can run
        self.pending = 0  # messages that it waits for and that have not begun
        self.until = 0.0  # when the last of those that have begun is through
        self.greenlet: Any = None


class Group:
    """What the ranks of one communicator share: who they are, and messages without a partner."""

    def __init__(self, ranks: Sequence[int], living: int | None = None) -> None:
        self.ranks = ranks  # world ranks, by rank of the group
        self.living = len(ranks) if living is None else living  # how many are not folded away
        self.sends: list[list[Transfer]] = [[] for _ in ranks]  # by receiver
        self.recvs: list[list[Transfer]] = [[] for _ in ranks]
        self.meetings: dict[int, Meeting] = {}
        self.told: list[set[int]] = [set() for _ in ranks]  # crashes reported, by receiver
        # Calls of agree() that not all have made: (digest, text) by rank of the group, by number.
        self.claims: dict[int, dict[int, Claim]] = {}
        self.agreed = [0 for _ in ranks]  # how often each has called agree()
        self.disagreement: Disagreement | None = None
        self.stream: Group | None = None  # the same ranks' communication streams
        self.groups: dict[Any, Group] = {}  # of ``Comm.group``, by members and number


class Transfer:
    """One side of a message: a send or a receive."""

    __slots__ = (
        "array",
        "end",
        "group",
        "posted",
        "receiver",
        "sender",
        "sending",
        "tag",
        "task",
        "waited",
    )

    def __init__(
        self,
        task: Task,
        group: Group,
        sending: bool,
        sender: int,
        receiver: int,
        array: Array,
        tag: int,
    ) -> None:
        self.task = task
        self.group = group
        self.sending = sending
        self.sender = sender
        self.receiver = receiver
        self.array = array
        self.tag = tag
        self.posted = task.clock
        self.end = -1.0  # not begun
        self.waited = False

    def __str__(self) -> str:
        if self.sending:
            return describe_message("send", self.array, "to", self.receiver, self.tag)
        return describe_message("recv", self.array, "source", self.sender, self.tag)


class Meeting:
    """A call that all ranks of a group must make: barrier, split and shared."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.brought: dict[int, Any] = {}
        self.waiting: list[Task] = []

    def __str__(self) -> str:
        return f"{self.name}, where only ranks {sorted(self.brought)} have come"


def describe(stuck: list[Task], ranks: int) -> str:
    """A line for each stuck task: what it waits for, and where in the user's code."""
    lines = [f"{len({task.rank for task in stuck})} of {ranks} ranks wait for what cannot come:"]
    sending = False
    for task in sorted(stuck, key=lambda task: (task.rank, task.stream)):
        stream = f" ({task.stream})" if task.stream else ""
        doing = task.doing
        if isinstance(doing, tuple):  # messages: those that have begun will come
            unmet = [transfer for transfer in doing if transfer.end < 0]
            sending = sending or (len(doing) == 1 and unmet[0].sending)
            doing = " and ".join(str(transfer) for transfer in unmet)
        place = users_line(task.greenlet.gr_frame) or "in minidist itself"
        lines.append(f"  rank {task.rank}{stream}: {doing}, {place}")
    if sending:
        lines.append(
            "a send returns when its receive has been posted: let one side receive first, "
            "or use sendrecv"
        )
    return "\n".join(lines)
