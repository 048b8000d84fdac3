"""What a user calls "module:name", on the command line or from Python."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any


def load(named: str) -> Any:
    """The object ``name`` of a module, also of one in the current folder.

    Raises ValueError if there is none. What the module itself raises passes through.

    >>> load("math:pi")
    3.141592653589793
    """
    module, _, name = named.partition(":")
    if str(Path.cwd()) not in sys.path:  # a script does not look there, unlike python -m
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = import_module(module.removesuffix(".py").replace("/", "."))
    except ModuleNotFoundError as error:
        raise ValueError(f"{named}: {error}; it is looked for in {Path.cwd()} too") from error
    if not hasattr(found, name):
        raise ValueError(f"{named}: there is no {name!r} in {found.__file__}")
    return getattr(found, name)
