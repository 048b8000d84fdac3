"""``--cases 2`` runs two cases of each parametrised test: what makes ``make check`` quick."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path


def test_few_cases_of_each_test_are_run(tmp_path):
    shutil.copy(Path(__file__).parent / "conftest.py", tmp_path)
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('n', range(8))\n"
        "def test_many(n): pass\n"
        "@pytest.mark.parametrize('n', range(1))\n"
        "def test_one(n): pass\n"
        "def test_plain(): pass\n"
    )

    def ran(*options):
        command = [sys.executable, "-m", "pytest", "-v", "-p", "no:xdist", *options, "test_it.py"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return re.findall(r"::(\S+) PASSED", done.stdout)

    assert ran("--cases", "2") == ["test_many[2]", "test_many[6]", "test_one[0]", "test_plain"]
    assert len(ran()) == 10
