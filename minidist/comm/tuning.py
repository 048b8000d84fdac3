"""Measured choices of algorithms: the file they are kept in, by MPI library and rank count.

A table is {rank count: [[bytes, algorithm], ...]}: the algorithm is the choice up to that many
bytes, the last one beyond. The rank count "any" stands for those that nobody measured.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

# What ranks of one machine use until somebody measures: they need not send what they can see. On
# two cores the first is the faster up to 64 KB, and the second from 256 KB on.
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
    """What these ranks can follow: without measurements the table for one machine, if they are on
    one; if not, no table that was measured where ranks could share memory."""
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
