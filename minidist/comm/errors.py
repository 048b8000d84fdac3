"""What can go wrong between ranks, in either world."""

from __future__ import annotations


class CommError(ValueError):
    """An invalid message: a bad buffer, a bad peer, or two sides that do not agree."""


class Disagreement(CommError):
    """Ranks have different values of what all must have alike: see ``Comm.agree``."""


class CollectiveMismatch(Disagreement):
    """Ranks call different collectives, or with other arguments: see agreement.py."""


class NoSharedMemory(CommError):
    """The ranks are on several machines, and share no memory."""


class Crash(RuntimeError):
    """Raise it on a rank to end that rank. In the local world the other ranks go on: messages that
    it had not sent are lost, and a rank that waits for it gets ``RankLost``. Under MPI the whole
    job ends."""


class RankLost(CommError):
    """The rank at the other end has crashed: ``rank``, in the communicator's numbering.

    A receive from anyone raises it too, once for each rank that crashed.
    """

    def __init__(self, message: str, rank: int) -> None:
        super().__init__(message)
        self.rank = rank
