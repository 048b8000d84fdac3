"""The MPI world: ranks are processes that ``mpirun`` started.

``world.py`` finds the processes and runs a function on them. ``messages.py`` sends and receives;
``buffers.py`` copies arrays that MPI cannot read. ``comm.py`` makes groups; ``stream.py`` is a
rank's second thread, and ``windows.py`` the memory that ranks share. ``process.py`` is what a
process has once; ``ending.py`` ends the job when a rank fails, and ``watchdog.py`` when one waits
for ever.
"""

from __future__ import annotations

from minidist.lazy import offer

__getattr__, __dir__, __all__ = offer(
    __name__,
    {
        "world": ["LauncherError", "MpiWorld"],
        "comm": ["MpiComm"],
        "requests": ["MpiRecv", "MpiSend"],
        "stream": ["MpiFuture", "Stream"],
        "ending": ["abort_on_error"],
        "watchdog": ["Watchdog"],
    },
)
