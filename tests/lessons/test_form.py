"""A lesson says at its top what it gives, asks before it shows, and folds away its answers."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from docs.site.pictures import first_paragraph
from tests.mpi.run import ROOT

LESSONS = sorted((ROOT / "lessons").glob("[0-9]*.py"))


def cells(path):
    """(is markdown, text) of each cell, in order; markdown without its comment signs."""
    for part in re.split(r"^# %%", path.read_text(), flags=re.M)[1:]:
        markdown = part.startswith(" [markdown]")
        text = part.split("\n", 1)[1]
        yield markdown, re.sub(r"^# ?", "", text, flags=re.M) if markdown else text


def test_every_number_has_its_lesson():
    assert [int(path.name[:2]) for path in LESSONS] == list(range(len(LESSONS)))
    assert len(LESSONS) >= 27


def test_the_page_of_all_lessons_begins_each_as_the_lesson_does():
    page = (ROOT / "lessons" / "README.md").read_text()
    for path in LESSONS:
        assert f"({path.name})\n\n{first_paragraph(path)}\n" in page, path.name


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_the_top_says_minutes_what_you_know_at_the_end_and_what_you_need(path):
    top = " ".join(next(cells(path))[1].split())
    for words in (r"About \d\d minutes\.", r"At the end you know ", r"You need: "):
        assert re.search(words, top), f"the top lacks {words!r}"


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_questions_come_before_the_code_that_answers_them(path):
    found = list(cells(path))
    numbers = []
    for (markdown, text), (next_is_markdown, _) in pairwise(found):
        asked = [int(number) for number in re.findall(r"\*\*Question (\d)\.\*\*", text)]
        numbers += asked
        assert not asked or (markdown and not next_is_markdown), f"{asked} lacks code after it"
        assert len(asked) <= 1, f"a cell asks {asked}: one at a time"
    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) >= 3
    assert "Question" not in found[-1][1], "the last cell cannot show an answer"


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_the_end_has_exercises_with_folded_answers(path):
    end = list(cells(path))[-1][1]
    tasks, answers = re.search(
        r"Try it.*?\n(.*)<details><summary>Answers</summary>\n(.*)</details>", end, re.S
    ).groups()
    asked = re.findall(r"^(\d)\. ", tasks, re.M)
    answered = re.findall(r"^(\d)\. ", answers, re.M)
    assert asked == [str(number) for number in range(1, len(asked) + 1)]
    # What only runs a command of the shell needs no answer.
    without = [n for n in asked if n not in answered]
    for number in without:
        task = re.search(rf"^{number}\. (.*?)(?=^\d\. |\Z)", tasks, re.M | re.S)[1]
        assert "`minidist " in task, f"exercise {number} has no answer"
    assert len(answered) >= 2
