"""minidist: distributed deep learning from scratch, every method readable and compared.

Nothing heavy is imported here, so that a piece can be taken alone:
``from minidist.collectives import ring`` loads no MPI, no plotting and no engine.
The names below are loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Tensor": "ops",  # where its operators are attached
    "no_grad": "tensor",
    "launch": "comm.launch",
    "LocalWorld": "comm.local",
    "Machine": "comm.machine",
    "gradcheck": "gradcheck",
}
_PACKAGES = (
    "collectives",
    "comm",
    "data",
    "metrics",
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
