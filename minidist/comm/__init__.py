"""Ranks and the messages between them, in one process or over MPI.

Read ``messages.py`` and ``comm.py`` first: what a rank can do. ``launcher.py`` starts the ranks.
They are functions in one process (``local/``, timed by the model in ``machine.py``) or processes
(``mpi/``). ``trace.py`` records what they did, and ``timeline.py`` draws it.
"""

from __future__ import annotations

from minidist.lazy import offer

__path__.append(f"{__path__[0]}/../moved/comm")  # modules under their old names: see minidist/moved

__getattr__, __dir__, __all__ = offer(
    __name__,
    {
        "comm": ["Comm", "Future", "Request"],
        "errors": ["CollectiveMismatch", "CommError", "Crash", "Disagreement", "RankLost"],
        "launcher": ["first_process", "launch", "launched_size", "print_once"],
        "local.world": ["LocalWorld"],
        "local.scheduler": ["Deadlock"],
        "machine": ["PROFILES", "Link", "Machine", "Pauses"],
        "timeline": ["Timeline"],
        "trace": [],
        "tuning": [],
    },
)
