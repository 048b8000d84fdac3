"""The MPI world: ranks are processes that ``mpirun`` started.

``world.py`` meets the MPI library, ``comm.py`` is what a rank sees, ``requests.py`` its messages
under way; ``watchdog.py`` ends the job when a rank fails or waits for ever.
"""

from __future__ import annotations

from minidist.lazy import offer

__getattr__, __dir__, __all__ = offer(
    __name__,
    {
        "world": ["LauncherError", "MpiWorld"],
        "comm": ["MpiComm"],
        "requests": ["MpiFuture", "MpiRecv", "MpiSend"],
        "watchdog": ["Watchdog", "abort_on_error"],
    },
)
