"""Lessons 7 to 9, 21 and 25 run, draw their pictures, and print what their text claims."""

from __future__ import annotations

import re

import pytest

from tests.lessons.test_lessons import run
from tests.mpi.run import ROOT

pytestmark = pytest.mark.slow
CLAIMS = {
    "07_data_parallel": [r"batch of 9: sum off by \de-0[67], average of averages by \de-0[12]"],
    "08_zero": [
        r"stage 2 .* 2\.000 ×",
        r"stage 3 .* 3\.000 ×",
        r"stage 3 .*equal: True",
    ],
    "09_talking_less": [r"step 1: sent \[0\.  1\.2", r"float16 .* 1/  2\.0,"],
    "21_large_batches": [
        r"batch +64: 157 steps, .* 103\.0 MB",
        r"batch 1024: +10 steps, .* 6\.6 MB",
    ],
    "25_talking_less_often": [
        r"exponential  after 4 rounds 1e-17",
        r"local SGD, H = 16 .* 1/ 16\.0,",
        r"ranks, local SGD, H = 1 .*(loss \S+)\n.*ranks, exact .*\1\n",
    ],
}


@pytest.mark.parametrize("name", CLAIMS)
def test_lesson(name, tmp_path):
    printed = run(ROOT / "lessons" / f"{name}.py", tmp_path)
    for claim in CLAIMS[name]:
        assert re.search(claim, printed), f"{claim} is not in\n{printed}"
    assert f"picture: out/lessons/{name}.png" in printed
    assert (tmp_path / "out" / "lessons" / f"{name}.png").stat().st_size > 20_000
    if name == "21_large_batches":
        large_batches_need_a_larger_rate_and_a_warm_up(printed)


def large_batches_need_a_larger_rate_and_a_warm_up(printed):
    found = re.findall(r"^(batch 64|1024.*?) +\d+ steps, test accuracy ([\d.]+)%", printed, re.M)
    reached = {name: float(percent) for name, percent in found}
    print(reached)
    small, same = reached["batch 64"], reached["1024, the same rate"]
    assert small > same + 4, "a large batch at a small batch's rate should fall behind"
    assert reached["1024, rate × 16"] < same, "without a warm-up the scaled rate should not do"
    for recipe in ("rate × 16, warm-up", "LARS, warm-up", "LAMB, warm-up"):
        assert reached[f"1024, {recipe}"] > same + 1.5, f"{recipe} should win that back"
        assert reached[f"1024, {recipe}"] > small - 6, f"{recipe} should come near"
