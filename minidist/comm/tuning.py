"""The file of measured choices of algorithms, by MPI library and rank count.

A table is {rank count: [[bytes, algorithm], ...]}: the algorithm is the choice up to that many
bytes, the last one beyond. The rank count "any" stands for those that were not measured.
"""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

# For ranks of one machine that outnumber its cores: collectives/learn.py cannot measure there. On
# two cores the first was faster up to 64 KB, and the second, which shares memory instead of
# sending, from 256 KB on. Three and four ranks took the third from 4 MB on: it waits twice only.
ONE_MACHINE = {
    "any": [
        [1 << 16, "recursive_doubling"],
        [1 << 20, "shared_memory"],
        [1 << 22, "cross_memory"],
    ]
}

SHARING = {"shared_memory", "cross_memory"}  # need all ranks on one machine


def tuning_file() -> Path:
    """Where the measured table is kept: ``MINIDIST_TUNING``, or in the user's cache."""
    named = os.environ.get("MINIDIST_TUNING")
    return Path(named) if named else Path.home() / ".cache" / "minidist" / "all_reduce.json"


def load_table(library: str) -> dict[str, Any] | None:
    """The table measured with this MPI library, if there is one.

    A file that is not such a table is named in a warning, and ignored.
    """
    tables, wrong = read_tables()
    if wrong:
        warnings.warn(f"{wrong}; it is ignored", stacklevel=2)
    return tables.get(library)


def read_tables() -> tuple[dict[str, Any], str]:
    """All tables of the file, by library; and what is wrong with it, or ""."""
    path = tuning_file()
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError) or str(path) == os.devnull
        return {}, "" if missing else f"the tuning file {path} cannot be read: {error}"
    if is_table(found):
        return found, ""
    return {}, (
        f"the tuning file {path} has another form than {{library: {{ranks: [[bytes, algorithm], "
        "...]}}}}: remove it, or measure again with 'minidist bench collectives --tune'"
    )


def is_table(found: Any) -> bool:
    """Whether this is {library: {rank count: [[bytes, algorithm], ...]}}."""
    if not isinstance(found, dict) or not all(isinstance(one, dict) for one in found.values()):
        return False
    rows = [rows for one in found.values() for rows in one.values()]
    return all(
        isinstance(row, list)
        and row
        and all(
            isinstance(entry, list)
            and len(entry) == 2
            and isinstance(entry[0], (int, float))
            and isinstance(entry[1], str)
            for entry in row
        )
        for row in rows
    )


def usable(measured: dict[str, Any], one_machine: bool, crowded: bool = False) -> dict[str, Any]:
    """The part of a table that these ranks can use.

    On one machine, if it is ``crowded``, ``ONE_MACHINE`` fills in for what was not measured. On
    several, tables that choose an algorithm of ``SHARING`` are left out.
    """
    if one_machine:
        return ONE_MACHINE | measured if crowded else measured
    return {
        ranks: table
        for ranks, table in measured.items()
        if not any(algorithm in SHARING for _, algorithm in table)
    }


def save_table(library: str, size: int, entries: list[tuple[int, str]]) -> Path:
    """Add what was measured at ``size`` ranks to the table; returns its path."""
    path = tuning_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    tables, _ = read_tables()
    tables.setdefault(library, {})[str(size)] = [list(entry) for entry in entries]
    path.write_text(json.dumps(tables, indent=1) + "\n")
    return path
