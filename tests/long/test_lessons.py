"""What the runs of all lessons are judged by."""

from __future__ import annotations

import pytest

from tests.long import lessons
from tests.long.lessons import LESSONS, cases, code_of, wrong

ALONE = 'print("picture: out/lessons/a.png")'
ON_RANKS = 'kind = "real" if launched_size() else "simulated"'
DRAWN = "picture: out/lessons/a.png\n"


@pytest.mark.parametrize(
    ("source", "printed", "status", "ranks", "fault"),
    [
        (ALONE, DRAWN * 3, 0, 3, ""),
        (ALONE, "1.5 s" + DRAWN, 0, 0, ""),
        (ALONE, DRAWN, 1, 0, "ended with 1"),
        (ALONE, "x.py:3: RuntimeWarning: overflow\n" + DRAWN, 0, 2, "warns: x.py:3"),
        (ALONE, "loss 0.1\n", 0, 0, "no picture"),
        (ON_RANKS, DRAWN + "3 real ranks: loss 1\n", 0, 3, ""),
        (ON_RANKS, DRAWN + "4 simulated ranks: loss 1\n", 0, 0, ""),
        (ON_RANKS, DRAWN * 2 + "3 real ranks: loss 1\n", 0, 3, "more than once"),
        (ON_RANKS, DRAWN + "4 simulated ranks: loss 1\n", 0, 3, "no line on 3 real"),
        (ON_RANKS, DRAWN + "1 real ranks: loss 1\n", 0, 4, "no line on 4 real"),
    ],
)
def test_a_fault_of_a_run_is_found(source, printed, status, ranks, fault):
    found = wrong(source, printed, status, ranks)
    assert fault in found and bool(found) == bool(fault), found


def test_every_lesson_runs_once_alone_and_on_one_to_four_ranks_of_both_libraries():
    found = list(cases(LESSONS, ["python", "mpich", "openmpi"]))
    assert len(found) == 9 * len(LESSONS) == len(set(found))
    assert (LESSONS[7], "python", 0) in found and (LESSONS[7], "openmpi", 4) in found


def test_a_change_of_text_keeps_what_has_passed_and_a_change_of_code_does_not(tmp_path):
    lesson = tmp_path / "a.py"
    hashes = []
    for text in ("# one\nx = 1\n", "# two\n\nx = 1\n", "# two\nx = 2\n"):
        lesson.write_text(text)
        hashes.append(code_of(lesson))
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_call_goes_on_and_begins_anew_when_all_have_passed(tmp_path, monkeypatch, capsys):
    ran, fail = [], {"mpich 2"}

    def run(lesson, world, ranks, folder):
        ran.append(f"{world} {ranks}")
        return "bad" if ran[-1] in fail else ""

    monkeypatch.setattr(lessons, "run", run)
    monkeypatch.setattr(lessons, "LESSONS", LESSONS[:1])
    monkeypatch.setattr(lessons, "FOLDER", tmp_path)
    monkeypatch.setattr(lessons, "OPENMPI", tmp_path / "none")
    monkeypatch.setattr("sys.argv", ["lessons"])
    assert lessons.main() == 1
    printed = capsys.readouterr().out
    assert (
        "without Open MPI" in printed
        and "1 failed:\n  00_one_model_five_ways mpich 2: bad" in printed
    )
    assert ran == ["python 0", "mpich 1", "mpich 2", "mpich 3", "mpich 4"]
    fail.clear()
    assert lessons.main() == 0 and ran[5:] == ["mpich 2"]
    assert lessons.main() == 0 and len(ran) == 6 + 5
