"""Lessons 7 to 9 run, draw their pictures, and print what their text claims."""

from __future__ import annotations

import re

import pytest

from tests.mpi.run import ROOT
from tests.test_lessons import run

CLAIMS = {
    "07_data_parallel": [r"batch of 9: sum off by \de-0[67], average of averages by \de-0[12]"],
    "08_zero": [r"stage 2 .* 2\.000 ×", r"stage 3 .* 3\.000 ×", r"stage 3 .*equal: True"],
    "09_talking_less": [r"exponential  after 4 rounds 1e-17", r"float16 .* 1/  2\.0,"],
}


@pytest.mark.parametrize("name", CLAIMS)
def test_lesson(name, tmp_path):
    printed = run(ROOT / "lessons" / f"{name}.py", tmp_path)
    for claim in CLAIMS[name]:
        assert re.search(claim, printed), f"{claim} is not in\n{printed}"
    assert f"picture: out/lessons/{name}.png" in printed
    assert (tmp_path / "out" / "lessons" / f"{name}.png").stat().st_size > 20_000
