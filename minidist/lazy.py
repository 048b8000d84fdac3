"""Names that a package offers, each loaded from its module when it is first asked for.

So a package has short imports, and whoever takes one piece does not load the others. Its
``__init__`` says in which of its modules each name is:

    __getattr__, __dir__, __all__ = offer(__name__, {"graph": ["to_dot"], "meter": [...]})

Python calls a module's ``__getattr__`` for a name that it lacks (PEP 562). A name must not be that
of a module in the same package: once that is imported, the name would mean the module.

``complete`` is for the opposite direction: a module to which one from a higher package adds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

# Modules that are complete only when a higher one has added to them, and that one.
COMPLETED_BY: dict[str, str] = {}  # filled in minidist/__init__.py, which is imported before both


def complete(module: str) -> None:
    """Called by ``module``, at its end or when needed: import what adds to it, if there is one."""
    if module in COMPLETED_BY:
        import_module(COMPLETED_BY[module])


def offer(
    package: str, names: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of ``package``; ``names`` by module in it."""
    home = {name: module for module, several in names.items() for name in several}

    def load(name: str) -> Any:
        if name in home:
            return getattr(import_module(f"{package}.{home[name]}"), name)
        if name in names:
            return import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def listed() -> list[str]:
        modules = {name for name in names if "." not in name}
        return sorted({*vars(sys.modules[package]), *home, *modules})

    return load, listed, sorted(home)


def deferred(module: str, name: str) -> Callable[..., Any]:
    """A function that loads ``module`` when it is first called, and calls its ``name``."""
    return lambda *arguments: getattr(import_module(module), name)(*arguments)
