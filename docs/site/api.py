"""A page for each package, with the docstrings of all its modules, for Sphinx's autodoc."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

import minidist
from docs.site.cards import heading

# Old names of modules; what starts a program; what needs another framework; what answers exercises.
LEFT_OUT = ("moved", "__main__", "peer_", "solution", "stub", "marks")


def modules() -> list[str]:
    """All modules that the API describes."""
    found = ["minidist"]
    for one in walk_packages(minidist.__path__, "minidist."):
        parts = one.name.split(".")[1:]
        if not any(part.startswith(LEFT_OUT) for part in parts):
            found.append(one.name)
    return found


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
        package = name if hasattr(module, "__path__") else name.rpartition(".")[0]
        pages.setdefault(package, []).append(name)
    for package, names in pages.items():
        lines = list(heading(package, "="))
        for name in names:
            if len(names) > 1 and name != package:
                lines += heading(name.removeprefix(f"{package}."), "-")
            lines += [f".. automodule:: {name}", "   :members:", "   :show-inheritance:", ""]
        (folder / "api" / f"{package}.rst").write_text("\n".join(lines))
