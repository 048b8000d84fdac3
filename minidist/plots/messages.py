"""Who sends to whom, drawn as a tree: the messages of a reduce or of a broadcast.

rounds_of(Timeline(world.traces).arrows())     their messages, round by round
draw_tree(axes, rounds, up=True)               the root above; red: the round of a message
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import Any

from minidist.colours import series

Message = tuple[int, int]  # sender, receiver


def rounds_of(arrows: Iterable[Any]) -> list[list[Message]]:
    """(sender, receiver) of each message, grouped by the time at which it has arrived.

    ``arrows``: those of a ``Timeline``, on the local world's clock: messages of one round end at
    the same time there, up to rounding.
    """
    found: dict[str, list[Message]] = defaultdict(list)
    for arrow in arrows:
        found[f"{arrow.end:.9e}"].append((arrow.sender, arrow.receiver))
    return [sorted(found[end]) for end in sorted(found, key=float)]


def draw_tree(axes: Any, rounds: Sequence[Sequence[Message]], up: bool, title: str = "") -> None:
    """Draw the tree of rank 0; a line is a message, with the number of its round.

    ``up``: messages go to the root, as in a reduce, and not from it, as in a broadcast. Raises
    ValueError if a rank has two parents, or none that leads to rank 0: then it is no tree.
    """
    parents: dict[int, int] = {}
    labels: dict[int, int] = {}
    for number, messages in enumerate(rounds, 1):
        for sender, receiver in messages:
            child, parent = (sender, receiver) if up else (receiver, sender)
            if child in parents:
                raise ValueError(f"no tree: rank {child} has two parents, {parents[child]} and "
                                 f"{parent}")  # fmt: skip
            parents[child], labels[child] = parent, number
    places: dict[int, tuple[float, int]] = {}
    leaves = count()

    def place(rank: int, depth: int) -> float:
        below = [place(child, depth + 1) for child in sorted(parents) if parents[child] == rank]
        across = sum(below) / len(below) if below else float(next(leaves))
        places[rank] = across, -depth
        return across

    if 0 not in parents:
        place(0, 0)
    if lost := sorted(set(parents) - set(places)):
        raise ValueError(f"no tree: the messages of ranks {lost} do not lead to rank 0")
    circle = {"boxstyle": "circle", "fc": "white", "ec": "0.3"}
    for rank, (x, y) in places.items():
        axes.text(x, y, rank, ha="center", va="center", fontsize=13, bbox=circle)
        if rank in parents:
            x_up, y_up = places[parents[rank]]
            axes.plot([x, x_up], [y, y_up], color="0.4", zorder=0)
            axes.text((2 * x + x_up) / 3, (2 * y + y_up) / 3, labels[rank], color=series(0),
                      ha="center", va="center", fontsize=12,
                      bbox={"fc": "white", "ec": "none", "pad": 1})  # fmt: skip
    depth = -min(y for _, y in places.values())
    axes.set(title=title, xlim=(-0.5, next(leaves) - 0.5), ylim=(-depth - 0.4, 0.4))
    axes.axis("off")


def draw_sequence(
    axes: Any,
    messages: Sequence[tuple[str, str, str]],
    below: Mapping[str, str],
    colour: str = "0.2",
    title: str = "",
) -> None:
    """Draw (source, target, text) in their order, from top to bottom.

    ``below``: for each name, from left to right, what stands under its column.
    """
    column = {name: across for across, name in enumerate(below)}
    end = len(messages) + 1
    for name, across in column.items():
        axes.plot([across, across], [0.4, end - 0.4], color="0.8", zorder=0)
        axes.text(across, 0, name, ha="center", va="center", fontsize=15)
        axes.text(across, end, below[name], ha="center", va="center")
    for order, (source, target, text) in enumerate(messages, 1):
        start, stop = column[source], column[target]
        arrow = {"arrowstyle": "-|>", "color": colour, "lw": 1.8, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", (stop, order), (start, order), arrowprops=arrow)
        axes.text((start + stop) / 2, order - 0.12, text, ha="center", color=colour)
    axes.set(title=title, xlim=(-0.5, len(column) - 0.5), ylim=(end + 0.4, -0.6))
    axes.axis("off")
