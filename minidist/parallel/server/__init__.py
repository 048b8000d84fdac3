"""Parameter servers: some ranks keep the parameters, the others compute gradients and push them.

Read ``parameter_server.py`` first: it is synchronous. In ``stale_parameter_server.py`` workers do
not wait for each other; ``look_ahead.py`` corrects the staleness; ``backup_workers.py`` does not
wait for the slowest. ``roles.py`` decides which ranks serve and which work, ``key_ranges.py`` which
server has which parameters. ``pushes.py`` has the format of a push; ``served_model.py`` reads,
saves and loads the whole model.
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
