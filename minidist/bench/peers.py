"""Start PyTorch's part of a benchmark: one process for each rank, connected by gloo."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minidist.comm.launcher import mpi_environment


def has_torch(python: str) -> bool:
    """Whether this Python has torch. Raises ValueError if there is no such program."""
    if shutil.which(python) is None:
        raise ValueError(f"--torch {python}: there is no such program")
    command = [python, "-c", "import torch"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def torch_ranks(python: str, module: str, arguments: Sequence[str], ranks: int) -> Any:
    """Run ``module`` on ``ranks`` processes of ``python``; returns the JSON of rank 0."""
    here = str(Path(__file__).parents[2])  # that Python need not have minidist installed
    processes = [
        subprocess.Popen(
            [python, "-m", module, *arguments],
            env=mpi_environment()
            | {
                "PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(20000 + os.getpid() % 20000),
                "RANK": str(rank),
                "WORLD_SIZE": str(ranks),
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    printed = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError(f"{module} failed: statuses {[p.returncode for p in processes]}")
    return json.loads(printed[0].splitlines()[-1])
