"""The two trees of the double tree: what its docstrings claim of them, for many rank counts."""

from __future__ import annotations

import pytest

from minidist.collectives.two_trees import edges


@pytest.mark.parametrize("size", range(1, 40))
def test_both_trees_reach_every_rank_and_no_rank_is_inside_both(size):
    inside = []
    for tree in (0, 1):
        parents = {edge.child: edge.parent for edge in edges(size) if edge.tree == tree}
        roots = set(range(size)) - set(parents)
        assert len(roots) == 1, "one root, and a parent for everybody else"
        for rank in parents:
            steps = 0
            while rank not in roots:
                rank, steps = parents[rank], steps + 1
                assert steps <= size.bit_length(), "the depth is logarithmic"
        children = list(parents.values())
        assert max(map(children.count, children), default=0) <= 2
        inside.append(set(children))
    assert not inside[0] & inside[1]


@pytest.mark.parametrize("size", range(1, 40))
def test_in_each_step_a_rank_sends_one_message_and_receives_one(size):
    for parity in (0, 1):
        moving = [edge for edge in edges(size) if edge.start % 2 == parity]
        senders, receivers = [e.child for e in moving], [e.parent for e in moving]
        assert len(set(senders)) == len(senders)
        assert len(set(receivers)) == len(receivers)
    for edge in edges(size):
        for below in edges(size):
            if (below.tree, below.parent) == (edge.tree, edge.child):
                assert below.start < edge.start, "a piece goes up after it has come"


def test_the_trees_of_seven_ranks_are_those_of_the_drawing():
    found = [{e.child: e.parent for e in edges(7) if e.tree == tree} for tree in (0, 1)]
    assert found[0] == {1: 3, 5: 3, 0: 1, 2: 1, 4: 5, 6: 5}
    assert found[1] == {0: 2, 4: 2, 6: 0, 1: 0, 3: 4, 5: 4}
