"""``replay(comm, records)``: take the algorithms that "auto" took in another run.

    records = json.loads(Path("out/compare/compare.json").read_text())["algorithms"]
    launch(lambda comm: (replay(comm, records), train(comm)))

Then all sums are added in the order of that run, and the results are bitwise the same. What was not
recorded is chosen as always. Checkpoints do this when they are loaded; ``comm/choices.py`` says
what a record is.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from minidist.collectives.auto import ANY
from minidist.collectives.learn import LIBRARY
from minidist.collectives.shared import cross_memory
from minidist.comm.comm import Comm
from minidist.comm.errors import NoSharedMemory

TYPES = {"ranks": str, "length": int, "itemsize": int, "algorithm": str}


def check(records: Any) -> None:
    """Raise ValueError unless this is a list of records."""
    good = isinstance(records, (list, tuple)) and all(
        isinstance(one, dict)
        and one.keys() == TYPES.keys()
        and all(type(one[key]) is kind for key, kind in TYPES.items())
        for one in records
    )
    if not good:
        raise ValueError(f"no record of algorithms: {str(records)[:80]}")


def replay(comm: Comm, records: Sequence[dict[str, Any]]) -> None:
    """From now on "auto" takes the algorithms of ``records``, for the same ranks and lengths.

    Every rank must call it, with the same records. Algorithms that this version or these machines
    do not have (shared memory, if the ranks are on several) are left out, with a warning. Raises
    ValueError for what are no records.
    """
    check(records)
    missing = {one["algorithm"] for one in records} - ANY.keys()
    if type(comm).library is Comm.library:  # this world has no MPI library
        missing |= {one["algorithm"] for one in records} & {LIBRARY.name}
    if any(one["algorithm"] == "cross_memory" for one in records):
        missing |= set() if cross_memory.possible(comm) else {"cross_memory"}
    if any(one["algorithm"] == "shared_memory" for one in records) and comm.size > 1:
        try:
            comm.shared(1, np.empty(1))
        except NoSharedMemory:  # raised by every rank
            missing.add("shared_memory")
    if missing and comm.rank == 0:
        names = ", ".join(sorted(missing))
        warnings.warn(
            f'"auto" took {names} in that run, which cannot be had here: what it chooses instead '
            "may add in another order",
            stacklevel=2,
        )
    for one in records:
        if one["algorithm"] not in missing:
            group = comm.trace.choices.setdefault(one["ranks"], {})
            group[one["length"], one["itemsize"]] = one["algorithm"]
