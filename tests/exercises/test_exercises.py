"""Solutions pass, stubs fail by name, wrong answers lose the mark and are told the reason."""

from __future__ import annotations

import pytest

from minidist.exercises import EXERCISES, check, find, marker
from minidist.exercises.marker import check_here
from minidist.exercises.report import explain
from tests.exercises.answers import WRONG
from tests.mpi.run import needs_mpi


@pytest.mark.parametrize("name", EXERCISES)
def test_the_solution_has_every_mark(name):
    report = check_here(name, find(name, EXERCISES).solution, seed=3)
    assert report.passed, [(mark.name, mark.wrong[:1]) for mark in report.marks if mark.wrong]
    assert all(mark.cases for mark in report.marks), "every mark was looked at"


@pytest.mark.parametrize("name", EXERCISES)
def test_the_stub_is_unsolved(name):
    report = check_here(name, find(name, EXERCISES).stub)
    assert report.unsolved
    assert report.reached == 0
    assert "NotImplementedError" in explain(report.marks[0])


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_a_wrong_answer_loses_its_mark_and_is_told_why(wrong, tmp_path):
    report = check_here(wrong.exercise, wrong.write(tmp_path))
    (mark,) = [mark for mark in report.marks if mark.name == wrong.mark]
    assert mark.reached == 0
    reasons = [what for _, what in mark.wrong]
    assert any(word in what for word in wrong.words.split("|") for what in reasons), reasons[:3]


@pytest.mark.parametrize("name", EXERCISES)
def test_at_least_four_wrong_answers_are_known(name):
    assert sum(wrong.exercise == name for wrong in WRONG) >= 4


# The marker itself, in processes of its own


@needs_mpi
@pytest.mark.slow
def test_both_worlds_a_trick_an_endless_loop_and_a_lie(tmp_path, monkeypatch):
    assert check("ring", find("ring", EXERCISES).solution).passed

    answer = tmp_path / "mine.py"
    answer.write_text(
        "from importlib import import_module as get\n"
        "print('12 of 12 points')\n"
        "def all_reduce(comm, array):\n"
        "    get('minidist.collec' + 'tives').ring.all_reduce(comm, array)\n"
    )
    report = check("ring", answer, worlds=["local"])
    assert report.reached == 0
    assert "it imports minidist.collectives" in report.marks[-1].wrong[0][1]
    assert "12 of 12 points" in report.printed

    answer.write_text(
        "def all_reduce(comm, array):\n    while comm.rank == 1 and comm.size == 2: pass\n"
    )
    monkeypatch.setattr(marker, "LIMIT", 3.0)
    report = check("ring", answer, worlds=["local"])
    assert report.reached == 0
    assert any("did not end within" in what for _, what in report.marks[0].wrong)
