"""A mesh: ranks in a grid with named axes, and a communicator along each axis.

    Mesh(comm, dp=2, pp=2, tp=2)          rank = (dp · 2 + pp) · 2 + tp

                       tp 0   tp 1
    dp 0   pp 0        0      1           along tp: 0 1 | 2 3 | 4 5 | 6 7
           pp 1        2      3           along pp: 0 2 | 1 3 | 4 6 | 5 7
    dp 1   pp 0        4      5           along dp: 0 4 | 1 5 | 2 6 | 3 7
           pp 1        6      7

The order of the axes is data outermost, then pipeline, then tensor. Neighbours along the tensor
axis have neighbouring ranks, because they communicate most: in every layer. A pipeline sends
activations from stage to stage once for each microbatch; replicas sum gradients once a step. If
links inside a machine are faster, this order sends the most bytes over them. Narayanan et al.,
arXiv 2104.04473, section 3.

Each kind of parallelism gets the communicator of its axis only.
"""

from __future__ import annotations

from math import prod

import numpy as np

from minidist.comm.comm import Comm
from minidist.nn.module import Module
from minidist.nn.normalization import SyncBatchNorm

ORDER = ("dp", "pp", "tp")  # from the outermost axis to the innermost
NAMES = {"dp": "data", "pp": "pipeline", "tp": "tensor"}


class Mesh:
    """The ranks of ``comm`` as a grid. Every rank must make it.

    Axes that are not given have length 1. Raises ValueError if the product of the lengths is not
    the number of ranks. ``mesh["tp"]`` is the communicator of this rank's group along an axis,
    ``mesh.place["tp"]`` this rank's coordinate; ``print(mesh)`` prints all groups.
    """

    def __init__(self, comm: Comm, **lengths: int) -> None:
        self.comm = comm
        self.lengths = dict.fromkeys(ORDER, 1) | check(lengths)
        if prod(self.lengths.values()) != comm.size:
            asked = ", ".join(f"{axis}={length}" for axis, length in lengths.items())
            raise ValueError(
                f"a mesh of {asked} needs {prod(self.lengths.values())} ranks, and there are "
                f"{comm.size}"
            )
        shape = [self.lengths[axis] for axis in ORDER]
        self.grid = np.arange(comm.size).reshape(shape)
        self.place = dict(zip(ORDER, map(int, np.unravel_index(comm.rank, shape)), strict=True))
        self._groups: dict[str, Comm] = {}
        for axis in ORDER:
            along = tuple(slice(None) if one == axis else self.place[one] for one in ORDER)
            members = self.grid[along].tolist()
            # If the group has all ranks, use comm itself: so they share its stream too.
            self._groups[axis] = comm if len(members) == comm.size else comm.group(members)
            if len(members) < comm.size:
                self._groups[axis].label = NAMES[axis]  # in timelines

    def __getitem__(self, axis: str) -> Comm:
        if axis not in self._groups:
            raise KeyError(f"a mesh has the axes {', '.join(ORDER)}, not {axis!r}")
        return self._groups[axis]

    def groups(self, axis: str) -> list[list[int]]:
        """All groups of ranks along an axis."""
        moved = np.moveaxis(self.grid, ORDER.index(axis), -1)
        return moved.reshape(-1, moved.shape[-1]).tolist()

    def rank_of(self, **place: int) -> int:
        """The rank at these coordinates, such as ``rank_of(pp=1)``; axes not given are 0."""
        return int(self.grid[tuple(place.get(axis, 0) for axis in ORDER)])

    def __str__(self) -> str:
        lines = [f"{self.comm.size} ranks, {describe(self.lengths)}"]
        for axis in ORDER:
            if self.lengths[axis] > 1:
                groups = " | ".join(" ".join(map(str, group)) for group in self.groups(axis))
                lines.append(f"{axis}  {NAMES[axis]:8}  {groups}")
        return "\n".join(lines)


def check_batch_norm(who: str, model: Module, mesh: Mesh) -> None:
    """Raise ValueError unless synchronised batch norm uses exactly the replicas of this rank.

    With more ranks, samples would count twice, or ranks without the layer would be waited for.
    """
    replicas = list(mesh["dp"].world)
    for path, layer in model.named_modules().items():
        if isinstance(layer, SyncBatchNorm) and list(layer.comm.world) != replicas:
            raise ValueError(
                f"{who}: layer {path} is synchronised over ranks {list(layer.comm.world)}, but the "
                f"replicas of this rank are {replicas}: pass it Mesh(comm, dp=..., ...)['dp']"
            )


def check(lengths: dict[str, int]) -> dict[str, int]:
    """``lengths``; ValueError for an unknown axis or a length below 1."""
    for axis, length in lengths.items():
        if axis not in ORDER:
            raise ValueError(f"a mesh has the axes {', '.join(ORDER)}, not {axis!r}")
        if not isinstance(length, (int, np.integer)) or length < 1:
            raise ValueError(f"the length of a mesh's axis is an integer ≥ 1, not {axis}={length}")
    return lengths


def parse(text: str) -> dict[str, int]:
    """The lengths in a text such as ``"dp=2,pp=2,tp=2"``; ValueError if it has another form.

    >>> parse("dp=2,tp=4")
    {'dp': 2, 'tp': 4}
    """
    lengths: dict[str, int] = {}
    for part in text.split(","):
        axis, _, length = part.strip().partition("=")
        if not length.isdigit() or axis in lengths:
            raise ValueError(f"a mesh is written dp=2,pp=2,tp=2, not {text!r}")
        lengths[axis] = int(length)
    return check(lengths)


def describe(lengths: dict[str, int]) -> str:
    """The axes longer than 1, as ``parse`` reads them.

    >>> describe({"dp": 2, "pp": 1, "tp": 4})
    'dp=2,tp=4'
    """
    return ",".join(f"{axis}={n}" for axis, n in lengths.items() if n > 1) or "dp=1"
