"""What CONTRIBUTING.md shows runs, and the files and names that it gives are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from minidist.compare import TASKS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
PROGRAMS = {
    section.partition("\n")[0].strip("# "): program
    for section in re.split(r"^## ", TEXT, flags=re.M)[1:]
    for program in re.findall(r"```python\n(.*?)```", section, re.S)
}


@pytest.mark.parametrize("heading", PROGRAMS)
def test_each_program_runs(heading, monkeypatch):
    for task in ("narrow",):
        monkeypatch.setitem(TASKS, task, None)
    assert re.search(r"^(    )?assert |^gradcheck\(", PROGRAMS[heading], re.M), "checks nothing"
    exec(compile(PROGRAMS[heading], heading, "exec"), {"__name__": heading})


def test_every_thing_to_add_has_a_program():
    headings = re.findall(r"^## (Add .*)$", TEXT, re.M)
    assert list(PROGRAMS) == headings and len(headings) >= 6


def test_files_that_are_named_are_there():
    named = set(re.findall(r"`((?:minidist|tests|docs)/[\w/.]+)`", TEXT))
    assert len(named) > 10
    for path in sorted(named):
        assert (ROOT / path).exists(), path
