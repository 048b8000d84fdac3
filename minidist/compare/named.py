"""Load an object that a user names as "module:name", or as "folder/file.py:name"."""

from __future__ import annotations

import sys
from difflib import get_close_matches
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any


def load(named: str) -> Any:
    """The object ``name`` of a module, which may be in the current folder, or of a file.

    Raises ValueError if there is none. Errors of the module itself are not caught.

    >>> load("math:pi")
    3.141592653589793
    """
    module, _, name = named.rpartition(":")
    if not module or not name:
        raise ValueError(f"{named}: write module:name, such as my:task for the task of my.py")
    found = _of_file(named, Path(module)) if module.endswith(".py") else _of_name(named, module)
    if not hasattr(found, name):
        near = suggestion(name, [one for one in vars(found) if not one.startswith("_")])
        where = getattr(found, "__file__", None) or f"the module {module}"
        raise ValueError(f"{named}: there is no {name!r} in {where}{near}")
    return getattr(found, name)


def suggestion(name: str, known: list[str]) -> str:
    """A question for the end of a message: did you mean the most similar of ``known``? Or ""."""
    same = [one for one in known if one.lower() == name.lower()]
    near = same or get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _of_name(named: str, module: str) -> Any:
    if str(Path.cwd()) not in sys.path:  # a console script does not search it; python -m does
        sys.path.insert(0, str(Path.cwd()))
    if "" in (parts := module.replace("/", ".").split(".")):
        raise ValueError(f"{named}: {module!r} is no module's name; a file's name ends in .py")
    try:
        return import_module(".".join(parts))
    except ModuleNotFoundError as error:
        raise ValueError(f"{named}: {error}; {Path.cwd()} is searched too") from error


def _of_file(named: str, path: Path) -> Any:
    """The module of a file in any folder, loaded once; it can import what lies beside it."""
    path = path.resolve()
    if not path.is_file():
        raise ValueError(f"{named}: there is no file {path}")
    for loaded in list(sys.modules.values()):
        if getattr(loaded, "__file__", None) == str(path):
            return loaded
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    name = path.stem if path.stem not in sys.modules else f"{path.stem} of {path.parent}"
    spec = spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    found = module_from_spec(spec)
    sys.modules[name] = found  # pickle and dataclasses look a module up there
    try:
        spec.loader.exec_module(found)
    except BaseException:
        del sys.modules[name]
        raise
    return found
