"""``minidist lessons`` lists the lessons, and brings them to wherever somebody wants them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib

import pytest

import minidist
from minidist.cli import lessons, main
from tests.mpi.run import ROOT

FILES = sorted([*ROOT.glob("lessons/*.py"), *ROOT.glob("lessons/scripts/*.py")])


def test_every_lesson_is_listed_with_its_title(capsys):
    assert main(["lessons"]) == 0
    listed = capsys.readouterr().out
    assert "06_all_reduce" in listed and "6. All-reduce, seven ways" in listed
    assert all(path.stem in listed for path in ROOT.glob("lessons/[0-9]*.py"))


def test_a_reader_that_closes_the_pipe_ends_a_command_quietly():
    listing = f"{sys.executable} -m minidist lessons"
    ended = subprocess.run(
        ["sh", "-c", f"{listing} | head -1; {listing} | true"], capture_output=True, text=True
    )
    assert ended.stdout.startswith("00_") and ended.stdout.count("\n") == 1
    assert ended.stderr == ""


def test_a_copy_has_every_file_and_leaves_work_as_it_is(tmp_path, capsys):
    mine = tmp_path / "course" / "05_messages.py"
    mine.parent.mkdir()
    mine.write_text("# my own notes")
    assert main(["lessons", "--copy", str(mine.parent)]) == 0
    assert f"wrote {len(FILES) - 1} files" in capsys.readouterr().out
    assert mine.read_text() == "# my own notes"
    for path in FILES:
        copied = mine.parent / path.relative_to(ROOT / "lessons")
        assert copied == mine or copied.read_text() == path.read_text()
    assert main(["lessons", "--copy", str(mine)]) == 2, "a file is no folder"
    assert "cannot write to" in capsys.readouterr().err


def test_an_installed_package_finds_its_own_or_says_that_it_has_none(tmp_path, monkeypatch):
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert wheel["targets"]["wheel"]["force-include"] == {"lessons": "minidist/lessons"}
    installed = tmp_path / "site-packages" / "minidist"
    installed.mkdir(parents=True)
    monkeypatch.setattr(minidist, "__file__", str(installed / "__init__.py"))
    with pytest.raises(ValueError, match="has no lessons"):
        lessons.folder()
    shutil.copytree(ROOT / "lessons", installed / "lessons")
    assert lessons.folder() == installed / "lessons"
