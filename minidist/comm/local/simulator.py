"""The simulator: when messages begin and end, and what a crash does to them.

A message begins when both sides have posted it and both ports are free; how long it takes is the
machine's rule (``Machine.message`` and ``Ports`` in ``machine.py``). A rank that waits for its
end is paused meanwhile: see ``scheduler.py``, which decides who runs next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from minidist.comm.agreement import Claim
from minidist.comm.checks import ANY
from minidist.comm.errors import CommError, Disagreement, RankLost
from minidist.comm.local.scheduler import Scheduler, Task
from minidist.comm.machine import Links, Machine, Ports
from minidist.comm.trace import Trace, describe_message
from minidist.engine.array import Array, module_of, work


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
    """A call that all ranks of a group must make (barrier, split, shared): the value of each."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.values: dict[int, Any] = {}  # by rank
        self.waiting: list[Task] = []

    def __str__(self) -> str:
        return f"{self.name}, where only ranks {sorted(self.values)} have come"


class Simulator(Scheduler):
    """One run of a local world: its tasks, and the messages between them."""

    def __init__(self, machine: Machine, ranks: int) -> None:
        super().__init__(machine, ranks)
        self.links = None if machine.even else Links(machine)
        self.ports = Ports(ranks)  # inside a node
        self.network_ports = Ports(ranks)
        self.groups: list[Group] = []
        self.common: dict[Any, Any] = {}  # of ``Comm.once``
        self.alive: Callable[[int], bool] = lambda rank: True  # False: another rank stands for it
        self.join: Callable[[Group, int, Trace], Any]  # a communicator; the world sets it

    def group_of(self, ranks: Sequence[int]) -> Group:
        """A group of these ranks of the world."""
        self.groups.append(Group(ranks, sum(map(self.alive, ranks))))
        return self.groups[-1]

    def check_received(self) -> None:
        """Raise CommError at the end of a run, if a message waits for its other side."""
        if self.lost:
            return
        for group in self.groups:
            for boxes, what in ((group.sends, "nobody received"), (group.recvs, "nobody sent")):
                for transfer in (one for box in boxes for one in box):
                    mine = transfer.sender if transfer.sending else transfer.receiver
                    raise CommError(
                        f"at the end of the launch messages were not received. On rank "
                        f"{group.ranks[mine]}: {what} {transfer}"
                    )

    # Messages

    def post(self, transfer: Transfer) -> Transfer:
        """One side of a message is posted: begin the message if the other is too, else keep it."""
        mine, theirs = transfer.group.recvs, transfer.group.sends
        if transfer.sending:
            mine, theirs = theirs, mine
        waiting = theirs[transfer.receiver]
        sender = transfer.sender
        for index, other in enumerate(waiting):
            if other.tag == transfer.tag and (
                other.sender == sender or other.sender == ANY or sender == ANY
            ):
                if other.task.rank in self.lost:
                    continue  # it crashed before the message began
                del waiting[index]
                if transfer.sending:
                    self._begin(transfer, other)
                else:
                    self._begin(other, transfer)
                return transfer
        mine[transfer.receiver].append(transfer)
        return transfer

    def _begin(self, send: Transfer, recv: Transfer) -> None:
        """Both sides of a message are posted: copy it, and set when it ends."""
        source, target = send.array, recv.array
        kind = source.dtype
        if source.size != target.size or (kind is not target.dtype and kind != target.dtype):
            raise CommError(
                f"rank {send.sender} sends {kind}[{source.size}] and rank "
                f"{send.receiver} receives {target.dtype}[{target.size}] (tag {send.tag}): both "
                "sides of a message must agree on dtype and length"
            )
        if type(source) is not type(target) and module_of(source) is not module_of(target):
            raise CommError(
                f"rank {send.sender} sends an array of {module_of(source).__name__} and rank "
                f"{send.receiver} receives into one of {module_of(target).__name__} (tag "
                f"{send.tag}): both sides of a message must be on the host, or both on a device"
            )
        sender, receiver = send.task.rank, recv.task.rank
        nbytes = source.nbytes
        ports = self.ports
        if self.links is None:
            seconds = self.machine.message(nbytes)
        else:
            seconds = self.links.message(sender, receiver, nbytes)
            if self.machine.between_nodes(sender, receiver):
                ports = self.network_ports
        end = ports.carry(sender, receiver, max(send.posted, recv.posted), seconds)
        beyond = work.beyond
        if source.ndim == target.ndim == 1:
            target[...] = source
        else:
            target.reshape(-1)[...] = source.reshape(-1)
        work.beyond = beyond  # a message costs α + nβ, no kernel
        recv.sender = send.sender
        for side in (send, recv):
            side.end = end
            if side.waited:
                task = side.task
                task.until = max(task.until, end)
                task.pending -= 1
                if not task.pending:
                    self.wake(task, task.until)

    def complete(self, *transfers: Transfer) -> None:
        """Wait until all of the current task's ``transfers`` have ended."""
        task = self.current
        until = task.clock
        if self.lost:
            self._check_partners(transfers)
        for transfer in transfers:
            if transfer.end < 0:
                transfer.task = task  # another task of the rank may have posted it
                transfer.waited = True
                task.pending += 1
            elif transfer.end > until:
                until = transfer.end
        if task.pending:
            task.until = until
            self.pause(transfers)
            if self.lost:
                self._check_partners(transfers)
        else:
            self.advance(until)

    # Crashes

    def crash(self, rank: int) -> None:
        """``rank`` has crashed: messages of its that have not begun never will. Wake who waits."""
        clock = self.clock()
        super().crash(rank)
        for task in self.tasks:
            if task.rank in self.lost or not task.pending:
                continue
            if any(self._lost_partner(transfer) is not None for transfer in task.doing):
                task.pending = 0
                for transfer in task.doing:
                    transfer.waited = False
                self.wake(task, max(clock, task.clock))

    def _lost_partner(self, transfer: Transfer) -> int | None:
        """The crashed rank without which this cannot begin; for a receive from anyone, one whose
        crash the receiver has not been told."""
        if transfer.end >= 0:
            return None
        world = transfer.group.ranks
        peer = transfer.receiver if transfer.sending else transfer.sender
        if peer != ANY:
            return peer if world[peer] in self.lost else None
        crashed = {rank for rank, other in enumerate(world) if other in self.lost}
        return min(crashed - transfer.group.told[transfer.receiver], default=None)

    def _check_partners(self, transfers: tuple[Transfer, ...]) -> None:
        """Raise RankLost if one of ``transfers`` waits for a rank that crashed."""
        for transfer in transfers:
            rank = self._lost_partner(transfer)
            if rank is None:
                continue
            if not transfer.sending:
                transfer.group.told[transfer.receiver].add(rank)
            for other in transfers:
                if other.end < 0:  # the task waits for it no longer
                    boxes = other.group.sends if other.sending else other.group.recvs
                    boxes[other.receiver].remove(other)
            raise RankLost(f"{transfer}: rank {rank} has crashed", rank)

    # Meetings

    def meet(self, group: Group, number: int, rank: int, name: str, value: Any) -> dict[int, Any]:
        """Wait for all ranks of the group; returns the value that each passed, by rank."""
        self.advance(self.clock())
        meeting = group.meetings.setdefault(number, Meeting(name))
        if meeting.name != name:
            raise CommError(f"rank {rank} called {name} where others called {meeting.name}")
        meeting.values[rank] = value
        if len(meeting.values) < group.living:
            meeting.waiting.append(self.current)
            self.pause(meeting)
        else:
            del group.meetings[number]
            for task in meeting.waiting:
                self.wake(task, self.current.clock)
        return meeting.values
