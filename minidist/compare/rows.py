"""The rows of a comparison: selected by name, by family, all, or a user's own methods.

A row is named "family/variant". ``DOZEN`` has one row for each idea. Your own method can be any
function with the arguments of ``Method``: a subclass, or a ``partial`` of one. It becomes a row of
the family "own".

    compare(["default", Mine])                   # or: minidist compare --methods default,my:Mine
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from minidist.compare.named import load, suggestion
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
    """All rows of a task; ``mesh``, such as "dp=2,tp=2", adds the rows of this mesh."""
    rows = METHODS | PRIVATE_METHODS | (SEQUENCE_METHODS if task.sequences else {})
    if mesh:
        lengths = parse(mesh)
        made = partial(MeshParallel, mesh=lengths, microbatches=4)
        rows[f"mesh/{mesh}"] = made
        if task.sequences and lengths.get("tp", 1) > 1:
            rows[f"mesh/{mesh},sequence"] = partial(made, sequence=True)
    return rows


def select(methods: Selection, task: Task, mesh: str = "") -> Rows:
    """The selected rows: serial first, then minidist's in their order, then the user's own.

    ``methods``: "default" (``DOZEN``), "all", a family ("zero"), a row ("pipeline/gpipe"), a
    method's class or a function that makes one, a mapping from names to these, or "module:name" of
    any of them. Several in a list, or separated by commas. Raises ValueError for unknown names.
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
                near = suggestion(part, ["default", "all", *families, *rows])
                raise ValueError(
                    f"unknown method {part!r}{near}: choose default, all, a family "
                    f"({', '.join(families)}), or some of {', '.join(rows)}; your own is "
                    "module:name"
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


def _own(found: Any, named: str) -> Rows:
    """The rows of a user's own method, or of a mapping of several; ``named``: for messages."""
    if isinstance(found, Mapping):
        return {f"{OWN}/{name}": _checked(make, named) for name, make in found.items()}
    make = _checked(found, named)
    plain = make.func if isinstance(make, partial) else make
    return {f"{OWN}/{getattr(plain, '__name__', named)}": make}


def _checked(make: Any, named: str) -> Make:
    if not callable(make):
        raise ValueError(
            f"{named} is no method: of type {type(make).__name__}, and cannot be called"
        )
    checked: Make = make
    return checked


def names(methods: Selection, task: str | Task = "residual_mlp", mesh: str = "") -> list[str]:
    """The names of the rows that ``select`` finds."""
    from minidist.compare.tasks import task_of

    return list(select(methods, task_of(task), mesh))
