"""In which order a backward visits the graph: marks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from minidist.exercises import single
from minidist.exercises.exercise import Case, Verdict

TITLE = "The order of a backward"
MINUTES = 40
FUNCTIONS = ("backward_order",)
MARKS = {
    "order": 4,
    "each once": 2,
    "only what the root needs": 1,
    "a long chain": 2,
    "graph untouched": 1,
}
FORBIDDEN = single.FORBIDDEN
Graph = dict[str, list[str]]
LONG = "a chain of 5,000"
BLOCKS = "30 blocks with a way around each: 2^30 paths"
TURNED = f"{BLOCKS}, the way around first"
LOOKS = 100_000  # in a graph of 61 tensors, more than a search needs that visits each once
DEPTH = 1_000  # Python's usual limit of calls inside calls


def cases(seed: int) -> Iterator[Case]:
    yield from (Case(seed=seed, settings={"graph": name}) for name in GRAPHS)
    yield from (Case(seed=seed + n, settings={"graph": f"random {n}"}) for n in range(4))


def _blocks(number: int, around_first: bool) -> Graph:
    """A chain of residual blocks: x = y1 + x1 with y1 = f(x1), x1 = y2 + x2, and so on."""
    names = ["x", *(f"x{n}" for n in range(1, number + 1))]
    graph: Graph = {names[-1]: []}
    for n, (name, below) in enumerate(pairwise(names), start=1):
        graph |= {name: [below, f"y{n}"] if around_first else [f"y{n}", below], f"y{n}": [below]}
    return graph


class Counted(dict[str, list[str]]):
    """A graph that ends a search which looks up tensors too often."""

    looks = 0

    def __getitem__(self, name: str) -> list[str]:
        self.looks += 1
        if self.looks > LOOKS:
            raise TooManyLooks
        return super().__getitem__(name)

    def get(self, name: str, other: Any = None) -> Any:
        if name not in self:
            return other
        return self[name]  # counted


class TooManyLooks(Exception):
    """The search goes along every path."""


GRAPHS: dict[str, Graph] = {
    "one tensor": {"x": []},
    "chain": {"x": ["y"], "y": ["z"], "z": []},
    "diamond": {"x": ["b", "a"], "b": ["a"], "a": []},
    "skipped": {"x": ["a", "b"], "b": ["c"], "c": ["a"], "a": []},
    "used twice by one": {"x": ["b"], "b": ["a", "a"], "a": []},
    "something else besides": {"x": ["a"], "a": [], "unused": ["a"]},
    BLOCKS: _blocks(30, around_first=False),
    TURNED: _blocks(30, around_first=True),
    LONG: {("x" if n == 0 else f"x{n}"): [f"x{n + 1}"] for n in range(5_000)} | {"x5000": []},
}


def graph_of(case: Case) -> Graph:
    if case["graph"] in GRAPHS:
        return GRAPHS[case["graph"]]
    draw = np.random.default_rng(case.seed)
    names = ["x", *(f"t{n}" for n in range(12))]
    return {
        name: draw.permutation(names[n + 1 :])[: draw.integers(0, 4)].tolist()
        for n, name in enumerate(names)
    }


def prepare(rank: int, case: Case) -> Graph:
    return graph_of(case)


def run(comm: Any, answer: Any, case: Case, graph: Graph) -> dict[str, Any]:
    copy = {name: list(parents) for name, parents in graph.items()}
    if case["graph"] in (BLOCKS, TURNED):
        copy = Counted(copy)
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(DEPTH)
    try:
        order = [str(name) for name in answer.backward_order("x", copy)]
        untouched = copy == graph
        limit = sys.getrecursionlimit()
        return {"order": order if limit == DEPTH else None, "untouched": untouched}
    except TooManyLooks:
        return {"order": [], "looks": LOOKS}
    except RecursionError:
        return {"order": None}
    finally:
        sys.setrecursionlimit(before)


def judge(case: Case, ranks: list[dict[str, Any]]) -> Iterator[Verdict]:
    order, graph = ranks[0]["order"], graph_of(case)
    if "looks" in ranks[0]:
        yield (
            "each once",
            f"parents are looked up more than {LOOKS:,} times in a graph of {len(graph)} tensors: "
            "it goes along each path to a tensor, and there are 2^30; visit each tensor once",
        )
        return
    if "untouched" in ranks[0]:
        changed = "parents was changed: other parts of the program still use the graph"
        yield "graph untouched", None if ranks[0]["untouched"] else changed
    if case["graph"] == LONG:
        yield (
            "a long chain",
            (
                "a chain of 5,000 tensors ends in a RecursionError, and a higher limit only moves "
                "that end: use a stack of your own"
                if order is None
                else None
            ),
        )
        return
    if order is None:
        yield "order", "the search calls itself for ever: it must not visit a tensor twice"
        return
    needed, left = set(), ["x"]
    while left:
        name = left.pop()
        if name not in needed:
            needed.add(name)
            left += graph[name]
    twice = sorted({name for name in order if order.count(name) > 1})
    yield (
        "each once",
        (
            f"{', '.join(twice)} occurs more than once: its backward would add its gradients again"
            if twice
            else None
        ),
    )
    other, missing = sorted(set(order) - needed), sorted(needed - set(order))
    yield (
        "only what the root needs",
        (
            f"{', '.join(other)} is in the order, and x does not depend on it"
            if other
            else f"{', '.join(missing)} is missing"
            if missing
            else None
        ),
    )
    place = {name: index for index, name in enumerate(order)}
    early = [
        (parent, name)
        for name in place
        for parent in graph[name]
        if parent in place and place[parent] < place[name]
    ]
    yield (
        "order",
        (
            f"{early[0][0]} comes before {early[0][1]}, which was made from it: its gradient is "
            "not complete yet"
            if early
            else None
        ),
    )
