"""Which cases run: ``--cases 2`` two of each test, ``-m long`` also what takes too long."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from itertools import combinations, product
from pathlib import Path

from tests.pairs import covering, pairs


def test_few_cases_of_each_test_are_run(tmp_path):
    shutil.copy(Path(__file__).parent / "conftest.py", tmp_path)
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('n', range(8))\n"
        "def test_many(n): pass\n"
        "@pytest.mark.parametrize('n', range(1))\n"
        "def test_one(n): pass\n"
        "def test_plain(): pass\n"
        "@pytest.mark.long\n"
        "def test_long(): pass\n"
    )

    def ran(*options):
        command = [sys.executable, "-m", "pytest", "-v", "-p", "no:xdist", *options, "test_it.py"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return re.findall(r"::(\S+) PASSED", done.stdout)

    assert ran("--cases", "2") == ["test_many[2]", "test_many[6]", "test_one[0]", "test_plain"]
    assert len(ran()) == 10
    assert ran("-m", "long") == ["test_long"]
    assert ran("-k", "long") == ["test_long"], "asked for by name"


def test_every_pair_of_choices_is_run_each_day_and_every_combination_at_times():
    axes = [range(3), "ab", [1.0, 2.0, 3.0, 4.0], (None, True)]
    cases = pairs(*axes)
    assert [case.values for case in cases] == list(product(*axes))
    daily = [case.values for case in cases if not case.marks]
    for (first, one), (second, other) in combinations(enumerate(axes), 2):
        for choices in product(one, other):
            assert any((case[first], case[second]) == choices for case in daily), choices
    assert len(daily) < 16 < len(cases), "12 is the least: the two longest axes"
    assert len(covering([(n,) for n in range(5)])) == 5, "a single axis is run whole"
