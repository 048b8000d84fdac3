"""Solutions pass, stubs fail by name, wrong answers lose the mark and are told the reason."""

from __future__ import annotations

import json
import sys
from xml.etree import ElementTree

import pytest
from rich.console import Console

from minidist.cli import main
from minidist.exercises import EXERCISES, check, find
from minidist.exercises.child import run_all
from minidist.exercises.exercise import Case
from minidist.exercises.marker import check_here
from minidist.exercises.report import explain, gradescope, junit, show
from minidist.exercises.watch import StudentComm
from tests.exercises.answers import WRONG
from tests.exercises.others import CHEATS, RIGHT
from tests.mpi.run import needs_mpi


@pytest.mark.parametrize("name", EXERCISES)
def test_the_solution_has_every_mark(name):
    report = check_here(name, find(name, EXERCISES).solution, seed=3)
    assert report.passed, [(mark.name, mark.wrong[:1]) for mark in report.marks if mark.wrong]
    assert all(mark.cases for mark in report.marks), "every mark was looked at"


@pytest.mark.parametrize("name", EXERCISES)
def test_the_stub_is_unsolved(name):
    report = check_here(name, find(name, EXERCISES).stub)
    assert report.unsolved
    assert report.reached == 0
    assert "NotImplementedError" in explain(report.marks[0])


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_a_wrong_answer_loses_its_mark_and_is_told_why(wrong, tmp_path):
    report = check_here(wrong.exercise, wrong.write(tmp_path))
    lost = [mark for mark in report.marks if mark.name in wrong.mark.split("|")]
    assert not all(mark.reached for mark in lost)
    reasons = [what for mark in lost for _, what in mark.wrong]
    assert any(word in what for word in wrong.words.split("|") for what in reasons), reasons[:3]


REMEMBERS = """
def remembering(function):
    kept = {}
    def wrapped(*arguments, **named):
        arrays = [one for one in arguments if isinstance(one, np.ndarray)]
        result = function(*arguments, **named)
        sizes = [getattr(a, "shape", getattr(a, "size", a)) for a in arguments if not callable(a)]
        first, returned = kept.setdefault(str(sizes), ([one.copy() for one in arrays], result))
        for array, one in zip(arrays, first):
            array[...] = one
        return returned
    return wrapped
"""


@pytest.mark.parametrize(
    "name",
    ["matmul_backward", "broadcast_backward", "cross_entropy", "adam", "central", "ring",
     "halving_doubling", "uneven_shards", "tensor_parallel"],
)  # fmt: skip
def test_what_is_kept_from_one_call_to_the_next_is_found(name, tmp_path):
    """Right for the first data of each size; those of the next call get the same result."""
    exercise, answer = find(name, EXERCISES), tmp_path / "answer.py"
    wrapped = "".join(f"{one} = remembering({one})\n" for one in exercise.functions)
    answer.write_text(f"{exercise.solution.read_text()}import numpy as np\n{REMEMBERS}{wrapped}")
    report = check_here(name, answer)
    assert not report.passed
    reasons = [what for mark in report.marks for _, what in mark.wrong]
    assert any("from one call to the next" in what for what in reasons), reasons[:3]


@pytest.mark.parametrize("what", RIGHT)
def test_a_right_answer_of_another_structure_has_every_mark(what, tmp_path):
    answer = tmp_path / "answer.py"
    answer.write_text(RIGHT[what])
    report = check_here(what.partition(":")[0], answer, seed=1)
    assert report.passed, [(mark.name, mark.wrong[:1]) for mark in report.marks if mark.wrong]


def test_what_an_answer_may_not_do_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(json, "dumps", json.dumps)  # put back, when an answer has replaced them
    monkeypatch.setattr(StudentComm, "send", StudentComm.send)
    missed, cases = [], [(0, Case(2, settings={"length": 3}))]
    for line, words in CHEATS.items():
        answer = tmp_path / "answer.py"
        names = "ctypes gc importlib inspect linecache numpy os pkgutil runpy subprocess minidist"
        answer.write_text(
            f"import {', '.join(names.split())}\nROOT = os.path.dirname(minidist.__file__)\n"
            f"def all_reduce(comm, array):\n    {line}\n"
        )
        lines = []
        run_all(find("ring", EXERCISES), answer, cases, lines.append)
        tried = lines[-1]["tricks"]
        if not any(words in what for what in tried):
            missed.append((line, tried))
    assert not missed


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit data")
def test_an_answer_that_fills_the_memory_is_told_how_much_there_is(tmp_path):
    answer = tmp_path / "mine.py"
    answer.write_text(
        "import numpy\ndef unbroadcast(grad, shape):\n    return numpy.empty(5 << 30, 'u1')\n"
    )
    report = check("broadcast_backward", answer)
    reasons = [what for mark in report.marks for _, what in mark.wrong]
    assert reasons and all("may hold 4 GiB), line 3" in what for what in reasons), reasons


def test_a_module_that_needs_a_forbidden_one_is_not_there_and_no_accusation(tmp_path):
    answer, lines = tmp_path / "answer.py", []
    answer.write_text("import minidist.nn\ndef all_reduce(comm, array):\n    pass\n")
    loaded = [name for name in sys.modules if name.startswith("minidist.nn")]
    kept = {name: sys.modules.pop(name) for name in loaded}
    try:
        run_all(find("ring", EXERCISES), answer, [(0, Case(1, settings={"length": 3}))],
                lines.append)  # fmt: skip
    finally:
        sys.modules.update(kept)
    assert lines[-1]["tricks"] == []
    assert "minidist.nn" in lines[-1]["load"] and "it imports minidist.coll" in lines[-1]["load"]


def test_the_solution_in_another_copy_of_minidist_is_not_read(tmp_path):
    other, lines = tmp_path / "minidist" / "minidist" / "exercises", []
    (other / "ring").mkdir(parents=True)
    (other / "names.py").touch()
    (other / "ring" / "solution.py").touch()
    answer = tmp_path / "minidist" / "ring.py"  # beside the package, as in a clone: its own file
    answer.write_text(
        f"open(__file__).close()\nopen({str(other / 'ring' / 'solution.py')!r})\n"
        "def all_reduce(comm, array):\n    pass\n"
    )
    run_all(find("ring", EXERCISES), answer, [(0, Case(1, settings={"length": 3}))], lines.append)
    (trick,) = lines[-1]["tricks"]
    assert trick.startswith("it reads") and trick.endswith("solution.py")


def test_a_traceback_that_an_answer_prints_is_no_trick(tmp_path):
    """It passes through the marker's files, and shows their lines: linecache reads them."""
    answer, lines = tmp_path / "answer.py", []
    answer.write_text(
        "import traceback\ndef all_reduce(comm, array):\n    try:\n        comm.send([1.0], 0)\n"
        "    except Exception:\n        traceback.print_exc()\n"
    )
    run_all(find("ring", EXERCISES), answer, [(0, Case(1, settings={"length": 3}))], lines.append)
    assert lines[-1]["tricks"] == []


@pytest.mark.parametrize("name", EXERCISES)
def test_at_least_five_wrong_answers_are_known(name):
    assert sum(wrong.exercise == name for wrong in WRONG) >= 5


# The marker itself, in processes of its own


@needs_mpi
@pytest.mark.slow
def test_both_worlds_a_trick_an_endless_loop_and_a_lie(tmp_path):
    assert check("ring", find("ring", EXERCISES).solution).passed

    answer = tmp_path / "removes.py"  # results of what it cannot do, when nobody looks any more
    answer.write_text(
        find("matmul_backward", EXERCISES).solution.read_text() + "import atexit, os, pathlib\n"
        "for fd in os.listdir('/proc/self/fd'):\n"
        "    path = pathlib.Path(os.path.realpath(f'/proc/self/fd/{fd}'))\n"
        "    if path.name == 'results.jsonl':\n"
        "        four = lambda: path.read_text().splitlines(True)[:4]\n"
        "        atexit.register(lambda: path.write_text(''.join(four())))\n"
        "        break\n"
    )
    report = check("matmul_backward", answer, worlds=["local"])
    assert "somebody removed the result" in report.marks[0].wrong[0][1]

    answer = tmp_path / "mine.py"
    answer.write_text(
        "from importlib import import_module as get\n"
        "print('12 of 12 points')\n"
        "def all_reduce(comm, array):\n"
        "    get('minidist.collec' + 'tives').ring.all_reduce(comm, array)\n"
    )
    report = check("ring", answer, worlds=["local"])
    assert report.reached == 0
    assert "it imports minidist.collectives" in report.marks[-1].wrong[0][1]
    assert "12 of 12 points" in report.printed

    answer.write_text(
        "def all_reduce(comm, array):\n    while comm.rank == 1 and comm.size == 2: pass\n"
    )
    report = check("ring", answer, worlds=["local"], limit=2.0)
    assert report.reached == 0
    assert any("did not end within" in what for _, what in report.marks[0].wrong)
    answer.write_text("while True:\n    pass\n")
    report = check("ring", answer, worlds=["local"], limit=2.0)
    assert report.marks[0].wrong[0] == (
        "loading the file", "the file was not loaded within 2 seconds"
    )  # fmt: skip


def test_the_commands_list_start_and_mark_and_write_every_format(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["exercise", "list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in EXERCISES)
    assert main(["exercise", "start", "adam"]) == 0
    assert "algorithm 1" in (tmp_path / "adam.py").read_text("utf-8")
    assert main(["exercise", "start", "ring", "--to", "a/first try.py"]) == 0
    assert "minidist check ring 'first try.py'" in (tmp_path / "a" / "first try.py").read_text(
        "utf-8"
    )
    assert main(["exercise", "start", "adam"]) == 2, "it does not overwrite work"
    assert main(["check", "adam", "adam.py"]) == 2, "nothing to mark"
    assert "This is the stub" in capsys.readouterr().out

    answer = find("adam", EXERCISES).solution.read_text()
    (tmp_path / "adam.py").write_text(answer.replace("+ eps", "+ 2 * eps"))
    formats = ["--json", "a.json", "--junit", "a.xml", "--gradescope", "a/results.json"]
    assert main(["check", "adam", "adam.py", *formats]) == 1
    marks = {mark["name"]: mark for mark in json.loads((tmp_path / "a.json").read_text())["marks"]}
    assert marks["first step"]["reached"] == 0
    assert "should be" in marks["first step"]["why"]
    suite = ElementTree.parse(tmp_path / "a.xml").getroot()
    assert suite.get("tests") == str(len(marks))
    assert {test.get("name") for test in suite if len(test)} == {"first step", "later steps"}
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    assert results["score"] == sum(test["score"] for test in results["tests"]) == 4
    # Python warns of it, and looks for the line of the marker in which it came to be: no trick.
    warned = "\n_adam = adam\nasync def never(): pass\ndef adam(*arguments, **rates):\n"
    (tmp_path / "adam.py").write_text(
        answer + warned + "    never()\n    _adam(*arguments, **rates)\n"
    )
    assert main(["check", "adam", "adam.py", "--json", "-"]) == 0
    for file in ("a", "a.xml/a"):  # a folder; below a file
        assert main(["check", "adam", "adam.py", "--junit", file]) == 2
        assert f"{file} cannot be written: " in capsys.readouterr().err
    assert main(["check", "adam", "adam.py", "--seed", "-1"]) == 2
    assert main(["check", "nonsense", "adam.py"]) == 2
    assert main(["check", "adam", "nothing.py"]) == 2
    assert main(["check", "adam", "adam.py", "--limit", "0"]) == 2


def test_formats_stay_whole_whatever_an_answer_says_and_show_a_trick(tmp_path):
    answer = tmp_path / "answer.py"
    answer.write_text(
        "def adam(*arguments, **rates):\n    raise ValueError('\\x1b[31m\\x00 a < b')\n"
    )
    report = check_here("adam", answer)
    found = ElementTree.fromstring(junit(report)).find("testcase/failure")
    assert "?[31m? a < b" in found.get("message")

    answer.write_text("def adams(*arguments):\n    pass\n")
    found = explain(check_here("adam", answer).marks[0])
    assert found == "loading the file: NameError: the file has to define adam, under just this name"

    answer.write_text("import minidist\ndef adam(*arguments):\n    pass\n")
    report = check_here("adam", answer)
    report.printed = "\x1b[2J9 of 9 points\n"
    results = gradescope(report)
    status = {test["name"]: test["status"] for test in results["tests"]}
    assert set(status.values()) == {"failed"} and "own work" in status
    console = Console(record=True, width=100)
    show(report, console)
    assert "?[2J9 of 9" in console.export_text()
    assert results["score"] == 0 and "no part of the marks:\n?[2J9 of 9 points" in results["output"]


def test_ranks_that_meet_in_a_variable_of_the_module_do_not(tmp_path):
    answer = tmp_path / "answer.py"
    answer.write_text(
        "BOX = {}\n"
        "def all_reduce(comm, array):\n"
        "    BOX[comm.rank] = array.copy()\n"
        "    for _ in range(2 * comm.size - 2):\n"
        "        comm.sendrecv(array[:0], (comm.rank + 1) % comm.size,\n"
        "                      array[:0], (comm.rank - 1) % comm.size)\n"
        "    array[:] = sum(BOX.values())\n"
    )
    report = check_here("ring", answer)
    assert "no sum was written" in report.marks[0].wrong[0][1]


@pytest.mark.slow
def test_lines_that_an_answer_writes_into_the_results_are_not_read(tmp_path):
    """It finds every open file of its process, and claims all points."""
    answer = tmp_path / "answer.py"
    answer.write_text(
        "import os\n"
        "def all_reduce(comm, array):\n"
        "    print('x' * 1000000)\n"
        "    for number in range(3, 20):\n"
        "        try:\n"
        '            os.write(number, b\'{"case": 0, "ranks": []}\\n\')\n'
        "        except OSError:\n"
        "            pass\n"
    )
    report = check("ring", answer, worlds=["local"])
    assert report.marks[0].cases and not report.marks[0].reached
    assert 0 < len(report.printed) < 500_000
