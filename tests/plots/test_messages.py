"""Messages, drawn: trees are read from a run, and what is no tree is refused."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from minidist import LocalWorld, launch
from minidist.collectives import ALL_REDUCE, BROADCAST
from minidist.comm import Timeline
from minidist.plots.messages import draw_sequence, draw_tree, rounds_of


def messages(algorithm, ranks):
    world = LocalWorld(record=True)
    launch(lambda comm: algorithm(comm, np.ones(8)), ranks, world)
    return rounds_of(Timeline(world.traces).arrows())


def test_rounds_of_a_binomial_tree_are_those_of_its_drawing():
    down = messages(BROADCAST["binomial"], 8)
    assert down == [[(0, 4)], [(0, 2), (4, 6)], [(0, 1), (2, 3), (4, 5), (6, 7)]]
    whole = messages(ALL_REDUCE["binomial"], 8)
    assert whole[3:] == down
    assert whole[:3] == [[(to, sender) for sender, to in some] for some in reversed(down)]


def test_messages_that_wait_for_one_rank_are_rounds_of_their_own():
    to_root = [[(1, 0)], [(2, 0)], [(3, 0)]]  # all begin at once, and arrive one after another
    assert messages(ALL_REDUCE["central"], 4)[:3] == to_root


@pytest.mark.parametrize("ranks", [1, 2, 5, 8])
@pytest.mark.parametrize("name", ["binomial", "central"])
def test_a_tree_has_every_rank_once_below_its_parent_with_its_round(name, ranks):
    rounds = messages(BROADCAST[name], ranks)
    axes = Figure().subplots()
    draw_tree(axes, rounds, up=False)
    nodes = {t.get_text(): t.get_position() for t in axes.texts if t.get_fontsize() == 13}
    labels = [int(t.get_text()) for t in axes.texts if t.get_fontsize() == 12]
    assert sorted(map(int, nodes)) == list(range(ranks))
    assert len(set(nodes.values())) == ranks, "two ranks at one place"
    for some in rounds:
        assert all(nodes[str(to)][1] == nodes[str(sender)][1] - 1 for sender, to in some)
    assert sorted(labels) == [number for number, some in enumerate(rounds, 1) for _ in some]


def test_what_is_no_tree_is_refused():
    axes = Figure().subplots()
    with pytest.raises(ValueError, match="rank 2 has two parents, 0 and 1"):
        draw_tree(axes, [[(2, 0)], [(2, 1)]], up=True)
    with pytest.raises(ValueError, match=r"ranks \[2, 3\] do not lead to rank 0"):
        draw_tree(axes, [[(1, 0)], [(2, 3)], [(3, 2)]], up=True)
    with pytest.raises(ValueError, match=r"ranks \[0, 1, 2\] do not lead to rank 0"):
        draw_tree(axes, messages(ALL_REDUCE["ring"], 3)[:1], up=True)


def test_a_sequence_has_an_arrow_for_each_message_from_top_to_bottom():
    axes = Figure().subplots()
    draw_sequence(axes, [("c", "b", "+1"), ("b", "a", "+2")], {"c": "1", "b": "2", "a": "6"})
    found = {text.get_text(): text.get_position() for text in axes.texts if text.get_text()}
    assert found["c"] == (0, 0) and found["a"] == (2, 0) and found["6"] == (2, 3)
    assert found["+1"][0] == 0.5 and found["+2"][0] == 1.5 and found["+1"][1] < found["+2"][1]
    arrows = [(note.xyann, note.xy) for note in axes.texts if not note.get_text()]
    assert arrows == [((0, 1), (1, 1)), ((1, 2), (2, 2))]
    top, bottom = sorted(axes.get_ylim())
    assert top < 0 and bottom > 3
