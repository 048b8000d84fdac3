"""The site: docstrings become pages, every row has a card, and the checker finds what is wrong."""

from __future__ import annotations

import re

import pytest

from docs.site import api, backlinks, breaks, cards, check
from docs.site.plain import to_rst
from tests.mpi.run import ROOT

FIGURE = """One line.

    rank 0   ●─●╮
    rank 1   ●─●╯

A *word*, ``code_``, a * b, x_ and |y|.

- an item
  that goes on
- another
"""


def test_a_plain_docstring_keeps_its_drawing_and_escapes_what_means_something():
    found = "\n".join(to_rst(FIGURE.split("\n")))
    assert "A *word*, ``code_``, a \\* b, x\\_ and \\|y\\|." in found
    assert ".. code-block:: text\n\n   rank 0   ●─●╮\n   rank 1   ●─●╯\n" in found
    assert "- an item\n  that goes on\n- another" in found


def test_every_row_of_compare_has_a_card_and_every_card_its_lesson_and_program():
    for name, entry in cards.entries().items():
        text = "\n".join(cards.card(name, entry))
        assert entry["when"] in text and entry["not"] in text
        assert text.count(".. code-block:: text") > 1, f"{name} has neither drawing nor formulas"
        for row in entry["rows"]:
            assert row in text
        for kind, link in re.findall(r":(doc|download):`/(.*?)`", text):
            assert (ROOT / (link + ".py" * (kind == "doc"))).is_file(), f"{name} links to {link}"


def test_a_row_without_a_card_is_refused(monkeypatch):
    monkeypatch.setattr(cards, "ROWS", cards.ROWS | {"own/new": cards.ROWS["serial"]})
    with pytest.raises(ValueError, match="own/new"):
        cards.entries()


def test_the_chooser_leads_to_every_card_and_names_each_problem_once():
    found = cards.entries()
    rows = list(cards.chooser(found))[2:]
    assert len(rows) == len(found)
    problems = [row.split("|")[1].strip() for row in rows]
    assert sorted(filter(None, problems)) == sorted({e["answers"] for e in found.values()})
    assert all(f"(generated/cards/{name}.rst)" in "\n".join(rows) for name in found)


def test_solutions_old_names_and_empty_modules_are_not_in_the_api():
    found = api.modules()
    assert "minidist.collectives.ring" in found and "minidist.exercises.marker" in found
    assert not [name for name in found if re.search(r"solution|\.moved|__main__", name)]
    assert "minidist.exercises.adam" not in found, "a page without a word"


HEAD = '<html><head><meta name="viewport" content="width=device-width"></head><body>'


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ('<p id="here">fine</p><a href="#here">x</a><a href="https://a.b">y</a>', None),
        ("<pre>\\frac and $$ in code</pre>", None),
        ('<a href="other.html">x</a>', "leads nowhere"),
        ('<a href="#there">x</a>', "no such place"),
        ('<img src="none.png">', "missing or empty"),
        ('<img src="white.png">', "one colour"),
        ('<script src="https://cdn/x.js"></script>', "from elsewhere"),
        ("<p>\\frac{1}{2}</p>", "raw TeX"),
        ("<article><h1>a.b<a>¶</a></h1> </article>", "nothing below"),
        ("<article><h1>a.b</h1><pre>c</pre></article>", None),
        ('<div class="cell_output"><div><pre>ValueError: no</pre></div></div>', "an error in"),
    ],
)
def test_the_checker_finds_each_fault(tmp_path, body, fault):
    from matplotlib.image import imsave
    from numpy import ones

    imsave(tmp_path / "white.png", ones((4, 4, 3)))
    for name in ("searchindex.js", "search.html", "docs/index.html"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(HEAD)
    (tmp_path / "page.html").write_text(HEAD + body)
    found = check.check(tmp_path)
    assert found == [] if fault is None else len(found) == 1 and fault in found[0], found


def test_the_checker_wants_a_viewport_a_picture_in_a_lesson_and_a_search(tmp_path):
    lesson = tmp_path / "lessons" / "01_autograd.html"
    lesson.parent.mkdir()
    lesson.write_text("<html></html>")
    found = "\n".join(check.check(tmp_path))
    for fault in ("no viewport", "a lesson without a picture", "searchindex.js is missing"):
        assert fault in found


def test_links_of_source_pages_that_lead_nowhere_are_taken_away(tmp_path):
    folder = tmp_path / "_modules"
    folder.mkdir()
    (tmp_path / "api.html").write_text('<dt id="here">')
    back = '<a class="viewcode-back" href="../api.html#{}">[docs]</a>'
    (folder / "m.html").write_text(back.format("here") + back.format("nowhere") + "code")
    (folder / "index.html").write_text('<a href="m.html">m</a> <a href="time.html">time</a>')
    assert backlinks.prune(tmp_path) == 2
    assert (folder / "m.html").read_text() == back.format("here") + "code"
    assert (folder / "index.html").read_text() == '<a href="m.html">m</a> time'


def test_names_in_headings_and_lists_break_where_a_part_ends(tmp_path):
    page = tmp_path / "a" / "b.html"
    page.parent.mkdir()
    text = (
        '<title>a.b_c</title><h1 class="x.y">{}<a href="#x.y_z">¶</a></h1><p>d.e_f</p>\n'
        '<h2><code>{}</code>: see. 1F1B</h2><a class="current reference internal" href="a.b">{}</a>'
        '<div class="title">{}</div><a href="b.c">e.f</a>'
    )
    page.write_text(text.format("minidist.parallel_zero", "_x.stage_of", "g.h", "i_j"))
    assert breaks.soften(tmp_path) == 1
    softened = "minidist.<wbr>parallel_<wbr>zero", "_x.<wbr>stage_<wbr>of", "g.<wbr>h", "i_<wbr>j"
    expected = text.format(*softened)
    assert page.read_text() == expected
    assert breaks.soften(tmp_path) == 0 and page.read_text() == expected


def test_links_to_files_that_are_no_pages_become_downloads():
    from docs.conf import files_that_are_no_pages

    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("lessons/*.[mp][dy]")]
    source = [*(page.read_text("utf-8") for page in pages), "[`a` b](../lessons/scripts/x.py)"]
    for number, text in enumerate(source):
        whole = [text]
        files_that_are_no_pages(None, "", whole)
        source[number] = whole[0]
    left = [
        found
        for text in source
        for found in re.findall(r"\]\([./]*(?:lessons/scripts|minidist)/\S+", text)
    ]
    assert not left and "{download}`a b <../lessons/scripts/x.py>`" in source[-1]
