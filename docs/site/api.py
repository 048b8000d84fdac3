"""A page for each package, with the docstrings of all its modules, for Sphinx's autodoc."""

from __future__ import annotations

import inspect
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import walk_packages
from types import ModuleType

import minidist
from docs.site.cards import heading
from docs.site.plain import to_rst
from minidist.collectives.algorithm import Algorithm

# Old names of modules; what starts a program; what needs another framework; what answers exercises.
LEFT_OUT = ("moved", "__main__", "peer_", "solution", "stub", "marks")


def modules() -> list[str]:
    """All modules that the API describes."""
    found = ["minidist"]
    for one in walk_packages(minidist.__path__, "minidist."):
        parts = one.name.split(".")[1:]
        if not any(part.startswith(LEFT_OUT) for part in parts) and not empty(one.name):
            found.append(one.name)
    return found


def empty(name: str) -> bool:
    """Whether a module's file has nothing in it: it only makes a folder a package."""
    spec = find_spec(name)
    return spec is not None and spec.origin is not None and not Path(spec.origin).stat().st_size


def write(folder: Path) -> None:
    """Write ``folder/api/PACKAGE.rst``. A module that cannot be imported here is left out."""
    (folder / "api").mkdir(parents=True, exist_ok=True)
    pages: dict[str, list[str]] = {}
    for name in modules():
        try:
            module = import_module(name)
        except ImportError as error:
            print(f"left out of the API: {name} ({error})")
            continue
        if module.__name__ != name:  # an old name of a module that has moved
            continue
        package = name if hasattr(module, "__path__") else name.rpartition(".")[0]
        pages.setdefault(package, []).append(name)
    for package, names in pages.items():
        lines = list(heading(package, "="))
        for name in names:
            if len(names) > 1 and name != package:
                lines += heading(name.removeprefix(f"{package}."), "-")
            lines += described(import_module(name))
        (folder / "api" / f"{package}.rst").write_text("\n".join(lines) + "\n")


def described(module: ModuleType) -> list[str]:
    """A module's docstring and what it defines itself; a package's face also names the rest."""
    name = module.__name__
    lines = [f".. automodule:: {name}"]
    if not hasattr(module, "__path__"):
        return [*lines, "   :members:", "   :show-inheritance:", "", *algorithms(module)]
    own, elsewhere = [], []
    for one in getattr(module, "__all__", [n for n in vars(module) if not n.startswith("_")]):
        value = getattr(module, one)
        if callable(value) and getattr(value, "__module__", name).startswith("minidist"):
            (own if value.__module__ == name else elsewhere).append((one, value))
    if own:
        lines += [f"   :members: {', '.join(one for one, _ in own)}", "   :show-inheritance:"]
    if elsewhere:
        names = ", ".join(f":py:obj:`~{value.__module__}.{one}`" for one, value in elsewhere)
        lines += ["", f"Names: {names}"]
    return [*lines, ""]


def algorithms(module: ModuleType) -> list[str]:
    """Collectives are objects that run an algorithm: shown as the function that they run."""
    lines: list[str] = []
    for name, value in vars(module).items():
        if isinstance(value, Algorithm) and value.run.__module__ == module.__name__:
            text = to_rst(inspect.cleandoc(value.run.__doc__ or "").split("\n"))
            lines += [f".. py:function:: {name}{inspect.signature(value.run)}".replace("'", ""), ""]
            lines += [f"   {line}".rstrip() for line in text]
            lines += ["", f"   Its cost: :py:func:`{value.cost.__name__}`.", ""]
    return lines
