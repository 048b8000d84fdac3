"""``Comm.from_mpi``: minidist's collectives and methods inside a program written with mpi4py.

Such a program starts MPI, says which ranks take part, and ends MPI itself. So nothing is
watched here, unlike in ``launch``: ranks that wait for each other for ever hang, as they always do
under MPI. What is received and freed is checked when the user calls ``close``.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from minidist.comm.comm import Comm
from minidist.comm.errors import CommError
from minidist.comm.mpi.comm import MpiComm
from minidist.comm.mpi.process import initialised
from minidist.comm.mpi.world import agreed_table, library_of
from minidist.comm.trace import Trace
from minidist.comm.tuning import load_table
from minidist.engine.array import share_gpus

_adopted: dict[str, int] = {}  # the key by which MPI keeps our communicator beside the user's


def from_mpi(comm: Any) -> Comm:
    """See ``Comm.from_mpi``."""
    mpi = _checked(comm)
    if not _adopted:
        _adopted["key"] = mpi.Comm.Create_keyval()
    found = comm.Get_attr(_adopted["key"])
    if found is not None and found._resources.handles:  # not closed
        return found
    own = comm.Dup()  # its messages are never received by the user's own calls, nor theirs by ours
    own.Set_errhandler(mpi.ERRORS_RETURN)  # so that mpi4py raises its exceptions
    node = own.Split_type(mpi.COMM_TYPE_SHARED)
    on_node, node_rank = node.Get_size(), node.Get_rank()
    node.Free()
    share_gpus(node_rank)
    crowded = on_node > len(os.sched_getaffinity(0))
    one_machine = on_node == own.Get_size()
    table = agreed_table(own, lambda: load_table(library_of(mpi)), one_machine, crowded)
    made = MpiComm(mpi, own, Trace(time.perf_counter()), crowded, table)
    comm.Set_attr(_adopted["key"], made)
    return made


def _checked(comm: Any) -> Any:
    """mpi4py's module; CommError unless ``comm`` is a communicator of its that can be used."""
    if isinstance(comm, Comm):
        raise CommError("Comm.from_mpi: this is one of minidist's already: use it as it is")
    if "mpi4py.MPI" not in sys.modules:
        raise CommError(f"Comm.from_mpi needs a communicator of mpi4py, not {type(comm).__name__}")
    mpi = initialised()
    if not isinstance(comm, mpi.Comm):
        raise CommError(f"Comm.from_mpi needs a communicator of mpi4py, not {type(comm).__name__}")
    if not mpi.Is_initialized() or mpi.Is_finalized():
        raise CommError("Comm.from_mpi: MPI does not run: call MPI.Init() before, and no Finalize")
    if comm == mpi.COMM_NULL or comm.Is_inter():
        raise CommError(
            "Comm.from_mpi: this rank is in no group, or the communicator joins two groups: pass "
            "an intracommunicator, on its members alone"
        )
    return mpi
