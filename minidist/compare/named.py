"""Load an object that a user names as "module:name"."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any


def load(named: str) -> Any:
    """The object ``name`` of a module, which may be in the current folder.

    Raises ValueError if there is none. Errors of the module itself are not caught.

    >>> load("math:pi")
    3.141592653589793
    """
    module, _, name = named.partition(":")
    if str(Path.cwd()) not in sys.path:  # a console script does not search it; python -m does
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = import_module(module.removesuffix(".py").replace("/", "."))
    except ModuleNotFoundError as error:
        raise ValueError(f"{named}: {error}; {Path.cwd()} is searched too") from error
    if not hasattr(found, name):
        raise ValueError(f"{named}: there is no {name!r} in {found.__file__}")
    return getattr(found, name)
