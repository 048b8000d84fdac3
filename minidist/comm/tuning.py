"""Measured choices of algorithms: the file they are kept in, by MPI library and rank count.

A table is {rank count: [[bytes, algorithm], ...]}: the algorithm is the choice up to that many
bytes, the last one beyond. The rank count "any" stands for those that were not measured.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

# For ranks of one machine, which can share memory instead of sending, if nothing was measured. On
# two cores the first is faster up to 64 KB, and the second from 256 KB on.
ONE_MACHINE = {"any": [[1 << 16, "recursive_doubling"], [1 << 17, "shared_memory"]]}


def tuning_file() -> Path:
    """Where the measured table is kept: ``MINIDIST_TUNING``, or in the user's cache."""
    named = os.environ.get("MINIDIST_TUNING")
    return Path(named) if named else Path.home() / ".cache" / "minidist" / "all_reduce.json"


def load_table(library: str) -> dict[str, Any] | None:
    """The table measured with this MPI library, if there is one."""
    try:
        return json.loads(tuning_file().read_text()).get(library)
    except (OSError, ValueError):
        return None  # not tuned, or not a table


def usable(measured: dict[str, Any], one_machine: bool) -> dict[str, Any]:
    """The part of a table that these ranks can use.

    On one machine ``ONE_MACHINE`` fills in for what was not measured. On several, tables that
    choose shared memory are left out.
    """
    if one_machine:
        return ONE_MACHINE | measured
    return {
        ranks: table
        for ranks, table in measured.items()
        if all(algorithm != "shared_memory" for _, algorithm in table)
    }


def save_table(library: str, size: int, entries: list[tuple[int, str]]) -> Path:
    """Add what was measured at ``size`` ranks to the table; returns its path."""
    path = tuning_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        tables = json.loads(path.read_text())
    except (OSError, ValueError):
        tables = {}
    tables.setdefault(library, {})[str(size)] = [list(entry) for entry in entries]
    path.write_text(json.dumps(tables, indent=1) + "\n")
    return path
