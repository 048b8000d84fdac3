"""Parameter servers: some ranks keep the parameters, the others compute gradients and push them.

Read ``parameter_server.py`` first: all wait for all. In ``stale_parameter_server.py`` workers run
ahead of each other, in ``look_ahead.py`` they make up for it, and in ``backup_workers.py`` the
slowest are not waited for. ``roles.py`` says who serves and who works, ``key_ranges.py`` which
server has which parameters, ``pushes.py`` what a gradient is on its way, and ``served_model.py``
how the whole model is read out, saved and loaded.
"""

from __future__ import annotations

from minidist.lazy import offer

__getattr__, __dir__, __all__ = offer(
    __name__,
    {
        "parameter_server": ["ParameterServer"],
        "stale_parameter_server": ["StaleParameterServer"],
        "look_ahead": ["LookAhead"],
        "backup_workers": ["BackupWorkers"],
        "key_ranges": ["KeyRanges"],
        "roles": ["ServerLost", "Servers"],
        "pushes": ["Pushes"],
    },
)
