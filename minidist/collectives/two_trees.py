"""Two binary trees over the same ranks, and the steps in which their edges carry messages.

    p = 7, by rank       tree 0               tree 1

                            3                    2
                          ╱   ╲                ╱   ╲
                         1     5              0     4
                        ╱ ╲   ╱ ╲            ╱ ╲   ╱ ╲
                       0   2 4   6          6   1 3   5

A tree has positions 1 to p. Its root is at the largest power of two that is at most p; the
positions to the left of it are a tree of the same kind, and so are those to the right. So interior
nodes are at even positions and leaves at odd ones. In tree 0 rank r is at position r + 1, in tree 1
one position further: a rank that is an interior node of one tree is a leaf of the other.

Now every rank sends to at most two parents, one in each tree, and receives from at most two
children. So each edge can be given one of two colours, such that no rank sends, or receives, over
two edges of the same colour. Edges of one colour carry messages in even steps, those of the other
in odd steps: then in each step a rank sends at most one message and receives at most one.

Sanders, Speck, Träff, Parallel Computing 35(12) 2009.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from minidist.collectives.partition import power_below


@dataclass(frozen=True)
class Edge:
    """From a child to its parent, in tree 0 or 1; it carries its first piece in step ``start``."""

    tree: int
    child: int
    parent: int
    start: int


def family(position: int, size: int) -> tuple[int, list[int]]:
    """Parent (0 for the root) and children of a position in the tree of positions 1 to ``size``."""
    parent, before, count = 0, 0, size  # a subtree has positions before + 1 to before + count
    while True:
        root = before + power_below(count)
        left, right = root - 1 - before, before + count - root  # positions on either side
        if position == root:
            children = [before + power_below(left)] if left else []
            return parent, [*children, root + power_below(right)] if right else children
        parent = root
        before, count = (before, left) if position < root else (root, right)


@lru_cache
def edges(size: int) -> list[Edge]:
    """All edges of both trees, children before parents, with the steps in which they begin.

    A rank can send up the first piece after it has received it from its children.
    """
    pairs = []  # (tree, child, parent), as ranks
    for tree in (0, 1):
        positions = [power_below(size)]
        order = []
        for position in positions:  # from the root down: the list grows while it is read
            children = family(position, size)[1]
            parent = (position - 1 - tree) % size
            order += [(tree, (child - 1 - tree) % size, parent) for child in children]
            positions += children
        pairs += order[::-1]
    colours = two_colours(pairs)
    starts: dict[tuple[int, int], int] = {}  # (tree, rank) → the step after its children's first
    found = []
    for pair in pairs:
        tree, child, parent = pair
        start = starts.get((tree, child), 0)
        start += (start + colours[pair]) % 2  # the next step of its colour
        starts[tree, parent] = max(starts.get((tree, parent), 0), start + 1)
        found.append(Edge(tree, child, parent, start))
    return found


def two_colours(pairs: list[tuple[int, int, int]]) -> dict[tuple[int, int, int], int]:
    """Colour 0 or 1 for each (tree, child, parent); two of one child, or one parent, differ.

    Edges that must differ form paths and cycles of even length, so two colours are enough and
    each path or cycle can begin with 0.
    """
    touching: dict[tuple[str, int], list[tuple[int, int, int]]] = {}
    for pair in pairs:
        touching.setdefault(("sends", pair[1]), []).append(pair)
        touching.setdefault(("receives", pair[2]), []).append(pair)
    colours: dict[tuple[int, int, int], int] = {}
    for first in pairs:
        if first in colours:
            continue
        colours[first] = 0
        chain = [first]
        for pair in chain:
            for other in touching["sends", pair[1]] + touching["receives", pair[2]]:
                if other not in colours:
                    colours[other] = 1 - colours[pair]
                    chain.append(other)
    return colours
