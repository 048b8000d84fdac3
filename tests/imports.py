"""Which module imports which, read from the source: for test_imports.py.

Every import counts, those inside functions, under TYPE_CHECKING, and ``import_module("...")`` too.
``from minidist.comm import Machine`` means the module from which comm's face loads that name: a
face made by ``lazy.offer`` imports nothing itself.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

Sources = dict[str, ast.Module]  # by module, "minidist.comm" for a package's __init__
Graph = dict[str, dict[str, int]]  # imported modules, each with a line, by importing module


def read(root: Path, without: str) -> Sources:
    """The modules in the folder ``root``, without one of its subfolders."""
    sources = {}
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root.parent).with_suffix("").parts
        if without not in parts:
            sources[".".join(parts).removesuffix(".__init__")] = ast.parse(file.read_text())
    return sources


def graph(sources: Sources) -> Graph:
    """For each module, which others of ``sources`` it imports, and on which line."""
    offered = {name: dict(_offered(name, tree)) for name, tree in sources.items()}
    found: Graph = {name: {} for name in sources}
    for name, tree in sources.items():
        for target, attribute, line in _statements(name, tree):
            module = _module(target, attribute, sources, offered)
            if module is not None:
                found[name].setdefault(module, line)
    return found


def outside(sources: Sources) -> Iterator[tuple[str, str]]:
    """(module, package of somebody else's) for every import from outside of ``sources``."""
    for name, tree in sources.items():
        for target, _, _ in _statements(name, tree):
            if target not in sources:
                yield name, target.partition(".")[0]


def computed(sources: Sources) -> set[str]:
    """The modules that import one whose name is computed: these imports are not in the graph."""
    return {
        name
        for name, tree in sources.items()
        for node in ast.walk(tree)
        if not isinstance(_imported_by_call(node), ast.Constant | type(None))
    }


def circle(found: Graph) -> list[str]:
    """The shortest way from a module through its imports back to it; [] if there is none."""
    ways = [way for start in found if (way := _way_back(found, start))]
    return min(ways, key=len, default=[])


def upward(found: Graph, layers: list[str]) -> list[str]:
    """Every import of a package from a higher one; ``layers`` from the top down."""
    height = {name: -index for index, name in enumerate(layers)}
    return [
        f"{name}:{line} imports {target}, which is higher"
        for name, targets in found.items()
        for target, line in targets.items()
        if height[layer(target)] > height[layer(name)]
    ]


def layer(module: str) -> str:
    """The package or module right below the top, such as "comm" of "minidist.comm.mpi.world"."""
    return module.split(".")[1] if "." in module else module


def drawn(found: Graph, way: list[str]) -> str:
    """A circle in words, with the line of each import."""
    steps = [f"{name}:{found[name][after]}" for name, after in pairwise(way)]
    return " → ".join([*steps, way[-1]]) if way else "no circle"


def _way_back(found: Graph, start: str) -> list[str]:
    """The shortest way from ``start`` to ``start``, breadth first; [] if there is none."""
    before: dict[str, str] = {}
    frontier = [start]
    for name in frontier:  # grows as we go
        for target in found[name]:
            if target == start:
                way = [start, name]
                while way[-1] != start:
                    way.append(before[way[-1]])
                return way[::-1] if name != start else [start, start]
            if target not in before:
                before[target] = name
                frontier.append(target)
    return []


def _statements(module: str, tree: ast.Module) -> Iterator[tuple[str, str, int]]:
    """(module, name in it or "", line) of every import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, "", node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}:{node.lineno}: a relative import: write the full name"
            for alias in node.names:
                yield str(node.module), alias.name, node.lineno
        elif (first := _imported_by_call(node)) is not None and isinstance(first, ast.Constant):
            yield str(first.value), "", node.lineno


def _imported_by_call(node: ast.AST) -> ast.expr | None:
    """What ``import_module`` is called with, if this is such a call."""
    if not (isinstance(node, ast.Call) and node.args):
        return None
    called = getattr(node.func, "id", getattr(node.func, "attr", ""))
    return node.args[0] if called in ("import_module", "__import__") else None


def _offered(module: str, tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(name, home module) for each name that the package offers through ``lazy.offer``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "offer":
            for home, names in ast.literal_eval(node.args[1]).items():
                for name in names:
                    yield name, f"{module}.{home}"


def _module(
    target: str, name: str, sources: Sources, offered: dict[str, dict[str, str]]
) -> str | None:
    """The module that ``from target import name`` needs; None if it is not one of ours."""
    if f"{target}.{name}" in sources:
        return f"{target}.{name}"
    if name in offered.get(target, {}):
        return offered[target][name]
    return target if target in sources else None
