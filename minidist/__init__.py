"""minidist: distributed deep learning from scratch, every method readable and compared.

Nothing heavy is imported here, so that a piece can be taken alone:
``from minidist.collectives import ring`` loads no MPI, no plotting and no engine.
The names below are loaded on first use.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

__version__ = "0.2.0"

# Where launchers leave the number of processes: Open MPI, MPICH's hydra (and Intel's), Slurm.
LAUNCHER_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")

# Under mpirun each rank gets one thread unless the user says otherwise, as torchrun does: ranks
# that all start a thread for every core only get in each other's way. NumPy reads this at import.
if "numpy" not in sys.modules and any(name in os.environ for name in LAUNCHER_SIZES):
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Modules that have moved since version 0.1 are found under their old names too: see that folder.
__path__.append(f"{__path__[0]}/moved")

_HOME = {
    "Tensor": "ops",  # where its operators are attached
    "no_grad": "engine.mode",
    "detect_anomaly": "inspect.anomalies",
    "launch": "comm.launch",
    "LocalWorld": "comm.local.world",
    "Machine": "comm.machine",
}
_PACKAGES = (
    "collectives",
    "comm",
    "data",
    "engine",
    "inspect",
    "metrics",  # moved to inspect
    "models",
    "nn",
    "ops",
    "optim",
    "parallel",
)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    if name in _PACKAGES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module 'minidist' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME, *_PACKAGES])
