"""CHANGELOG.md has this version on top, and says where every module has moved."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from minidist import __version__

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CHANGELOG.md").read_text()


def test_the_version_is_said_once():
    assert re.search(r"^## \[(.*?)\]", TEXT, re.M)[1] == __version__
    assert "version" in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dynamic"]


def test_every_moved_module_is_listed_with_its_new_home():
    listed = dict(re.findall(r"^\| `([\w.]+)` \| `([\w.]+)` \|$", TEXT, re.M))
    moved = ROOT / "minidist" / "moved"
    there = {
        ".".join(file.relative_to(moved).with_suffix("").parts): found[1]
        for file in moved.rglob("*.py")
        if (found := re.search(r'now\("minidist\.([\w.]+)"', file.read_text()))
    }
    assert listed == there
