"""Names that a package offers, each loaded from its module when it is first asked for.

So a package has short imports, and whoever takes one piece does not load the others. Its
``__init__`` says in which of its modules each name is:

    __getattr__, __dir__, __all__ = offer(__name__, {"graph": ["to_dot"], "meter": [...]})

Python calls a module's ``__getattr__`` for a name that it lacks (PEP 562). A name must not be that
of a module in the same package: once that is imported, the name would mean the module.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def offer(
    package: str, names: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of ``package``; ``names`` by module."""
    home = {name: module for module, several in names.items() for name in several}

    def load(name: str) -> Any:
        if name in home:
            return getattr(import_module(f"{package}.{home[name]}"), name)
        if name in names:
            return import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def listed() -> list[str]:
        return sorted({*vars(sys.modules[package]), *home, *names})

    return load, listed, sorted(home)
