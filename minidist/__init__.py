"""minidist: distributed deep learning from scratch, every method readable and compared.

Nothing heavy is imported here, so that a piece can be taken alone:
``from minidist.collectives import ring`` loads no MPI, no plotting and no engine.
The names below are loaded on first use.

Importing changes nothing in the process, except in one that ``mpirun`` has started. There

- ``OMP_NUM_THREADS`` is set to 1, unless it is set already or NumPy, which reads it once, is
  loaded. Otherwise every rank would start a thread for each core, and they would slow each other.
- ``sys.excepthook`` and ``threading.excepthook`` are set: an exception that nobody catches,
  anywhere in the program, is printed with the rank, and ends all ranks. Otherwise the others would
  wait for this one for ever.
"""

from __future__ import annotations

import os
import sys
import threading

from minidist.lazy import COMPLETED_BY, deferred, offer

__version__ = "0.3.0"

# Where launchers leave the number of processes: Open MPI, MPICH's hydra (and Intel's), Slurm.
LAUNCHER_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")

if any(name in os.environ for name in LAUNCHER_SIZES):
    if "numpy" not in sys.modules:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    if sys.excepthook is sys.__excepthook__:  # not against the user's own
        sys.excepthook = deferred("minidist.comm.mpi.process", "on_uncaught")
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = deferred("minidist.comm.mpi.process", "on_uncaught_in_thread")

# Modules that have moved since version 0.1 are found under their old names too: see that folder.
__path__.append(f"{__path__[0]}/moved")

# The operators of Tensor are in ops/, which a module in engine/ cannot import.
COMPLETED_BY["minidist.engine.tensor"] = "minidist.ops"
COMPLETED_BY["minidist.engine.array"] = "minidist.engine.phantom"  # if that device is asked for

__getattr__, __dir__, __all__ = offer(
    __name__,
    {
        "engine.tensor": ["Tensor", "tensor"],
        "engine.mode": ["no_grad"],
        "inspect.anomalies": ["detect_anomaly"],
        "comm.comm": ["Comm"],
        "comm.launcher": ["launch"],
        "comm.local.world": ["LocalWorld"],
        "comm.machine": ["Machine"],
        "collectives": [],
        "comm": [],
        "data": [],
        "engine": [],
        "inspect": [],
        "metrics": [],  # moved to inspect
        "models": [],
        "nn": [],
        "ops": [],
        "optim": [],
        "parallel": [],
    },
)
