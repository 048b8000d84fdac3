"""Which rows a comparison has: names, families, all of them, and a user's own methods.

A row is "family/variant". ``DOZEN`` has one of each idea. A method of your own is anything that is
called as ``Method`` is: a subclass, or a ``partial`` of one; beside ours it is a row of the family
"own".

    compare(["default", Mine])                   # or: minidist compare --methods default,my:Mine
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from minidist.compare.named import load
from minidist.compare.tasks import Task
from minidist.parallel import METHODS, MeshParallel, Method
from minidist.parallel.mesh.mesh import parse
from minidist.parallel.variants import SEQUENCE_METHODS
from minidist.privacy.variants import PRIVATE_METHODS

Make = Callable[..., Method]
Rows = dict[str, Make]
Selection = str | Make | Mapping[str, Make] | Iterable[str | Make | Mapping[str, Make]]

OWN = "own"
DOZEN = (
    "serial",
    "data_parallel/ring",
    "data_parallel/overlapped",
    "parameter_server/bsp",
    "parameter_server/async",
    "zero/1",
    "zero/3",
    "compression/top_k",
    "local_sgd/average",
    "gossip/ring",
    "pipeline/1f1b",
    "tensor/parallel",
    "mesh/every_axis",
)


def rows_of(task: Task, mesh: str = "") -> Rows:
    """All rows that a task can have; ``mesh``, such as "dp=2,tp=2", adds one for that mesh."""
    rows = METHODS | PRIVATE_METHODS | (SEQUENCE_METHODS if task.sequences else {})
    if mesh:
        lengths = parse(mesh)
        made = partial(MeshParallel, mesh=lengths, microbatches=4)
        rows[f"mesh/{mesh}"] = made
        if task.sequences and lengths.get("tp", 1) > 1:
            rows[f"mesh/{mesh},sequence"] = partial(made, sequence=True)
    return rows


def select(methods: Selection, task: Task, mesh: str = "") -> Rows:
    """The rows that are meant, serial first, then ours in their order, then the user's own.

    ``methods``: "default" for a dozen, "all", a family ("zero"), a row ("pipeline/gpipe"), a
    method's class or what makes one, several of these by name in a mapping, or "module:name" of any
    of them; several in a list, or in a text with commas. Raises ValueError for unknown names.
    """
    rows = rows_of(task, mesh)
    chosen, own = {"serial"}, Rows()
    for part in _parts(methods):
        if isinstance(part, str) and ":" not in part:
            key = part.replace("one_f_one_b", "1f1b")
            found = [row for row in rows if key in ("all", row, row.split("/")[0])]
            if part == "default":
                found = [row for row in DOZEN if row in rows]
            if not found:
                families = dict.fromkeys(row.split("/")[0] for row in rows)
                raise ValueError(
                    f"unknown method {part!r}: choose default, all, a family ({', '.join(families)}"
                    f"), or some of {', '.join(rows)}; your own is module:name"
                )
            chosen.update(found)
        else:
            own |= _own(load(part) if isinstance(part, str) else part, str(part))
    chosen.update(row for row in rows if mesh and row.startswith(f"mesh/{mesh}"))
    return {row: make for row, make in rows.items() if row in chosen} | own


def _parts(methods: Selection) -> Iterable[Any]:
    if isinstance(methods, str):
        return methods.split(",")
    return [methods] if callable(methods) or isinstance(methods, Mapping) else methods


def _own(found: Any, said: str) -> Rows:
    """The rows of what a user has passed in place of a name."""
    if isinstance(found, Mapping):
        return {f"{OWN}/{name}": _checked(make, said) for name, make in found.items()}
    make = _checked(found, said)
    plain = make.func if isinstance(make, partial) else make
    return {f"{OWN}/{getattr(plain, '__name__', said)}": make}


def _checked(make: Any, said: str) -> Make:
    if not callable(make):
        raise ValueError(f"{said} is no method: a {type(make).__name__} cannot be called")
    checked: Make = make
    return checked


def names(methods: Selection, task: str | Task = "residual_mlp", mesh: str = "") -> list[str]:
    """The names of the rows that ``select`` finds."""
    from minidist.compare.tasks import task_of

    return list(select(methods, task_of(task), mesh))
