"""Tasks and methods of a user's own; rows that cannot be trained say why, and stop nothing."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
from rich.console import Console

from minidist import LocalWorld, Machine
from minidist.comm.errors import NoSharedMemory
from minidist.comm.local.comm import LocalComm
from minidist.compare import TASKS, Task, compare, comparison, names
from minidist.compare import report as reports
from minidist.compare.rows import rows_of
from minidist.compare.tasks import task_of
from minidist.compare.words import COLUMNS, FAMILIES, VARIANTS
from minidist.data import fashion_mnist
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import SGD
from tests.compare import own
from tests.mpi.run import mpiexec, needs_mpi

HERE = "tests.compare.own"


def variants(report):
    return [row["variant"] for row in report["rows"]]


def check_equal(report, bound=1e-4):
    for row in report["rows"]:
        for what in ("bytes_sent", "messages_sent", "peak_bytes"):
            assert row[f"predicted_{what}"] in (None, row[what]), (row["method"], row["variant"])
        if row["exact"]:
            assert max(row["loss_gap"], row["parameter_gap"]) <= bound, row["variant"]


def test_own_methods_beside_ours_in_each_way_of_naming_them():
    report, _ = compare(["data_parallel/ring", own.Plain], own.narrow, ranks=3, steps=2, batch=9)
    assert variants(report) == [None, "ring", "Plain"]
    check_equal(report)
    plain = report["rows"][2]
    assert plain["predicted_bytes_sent"] is None and plain["bytes_sent"][0] > 0
    assert plain["predicted_step_seconds"] > 0, "simulated, although it has no formula"
    assert report["task"] == "narrow"
    tree = own.rows["tree"]
    for methods in (own.rows, f"{HERE}:rows", [f"{HERE}:Plain", {"tree": tree}], [own.Plain, tree]):
        assert len(names(methods, f"{HERE}:narrow")) == 3, methods
    assert names(f"zero/1,{HERE}:rows") == ["serial", "zero/1", "own/plain", "own/tree"]


def test_a_row_that_fails_or_hangs_is_left_out_with_the_reason():
    methods = ["zero/1", own.Broken, own.Stuck, own.by_mpi, own.Plain]
    report, _ = compare(methods, own.narrow, ranks=2, steps=1, batch=8)
    assert variants(report) == [None, "1", "Plain"]
    reasons = report["not_applicable"]
    assert reasons["own/Broken"].startswith("AttributeError: ")
    assert reasons["own/Stuck"].startswith("Deadlock: ")
    assert "no MPI library" in reasons["own/by_mpi"]


@needs_mpi
def test_real_ranks_take_them_too_and_another_run_adds_in_the_same_order(tmp_path):
    command = ["-m", "minidist", "compare", "--task", f"{HERE}:narrow", "--steps", "2"]
    command += ["--batch", "8", "--out", str(tmp_path)]
    methods = ["zero/1", *(f"{HERE}:{name}" for name in ("Broken", "Stuck", "by_mpi", "Plain"))]
    done = mpiexec(2, *command, "--methods", ",".join(methods))
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "compare.json").read_text())
    assert variants(report) == [None, "1", "by_mpi", "Plain"]
    assert report["not_applicable"].keys() == {"own/Broken", "own/Stuck"}
    assert "left out: own/Stuck: Deadlock: " in done.stdout
    assert report["rows"][2]["uncounted"] > 0 and "not counted" in done.stdout
    check_equal(report)
    lengths = {one["length"] for one in report["algorithms"]}
    assert {1, 12730} <= lengths, "of Plain's two calls of auto"

    other = [one | {"algorithm": "double_tree"} for one in report["algorithms"]]
    (tmp_path / "other.json").write_text(json.dumps({"algorithms": other}))
    replayed = ("--methods", f"{HERE}:Plain", "--algorithms", str(tmp_path / "other.json"))
    done = mpiexec(2, *command, *replayed)
    assert done.returncode == 0, done.stderr
    again = json.loads((tmp_path / "compare.json").read_text())
    assert {one["algorithm"] for one in again["algorithms"]} == {"double_tree"}


@pytest.mark.parametrize(
    ("task", "ranks", "left_out"),
    [
        pytest.param(
            "gpt",
            3,
            {"pipeline/pipedream": "PipeDream takes no tied parameters"},
            marks=pytest.mark.slow,
        ),
        pytest.param("cnn", 2, {}, marks=pytest.mark.slow),
        ("regression", 8, {}),
    ],
)
def test_tasks_by_the_rows_that_cut_models(task, ranks, left_out):
    """Of every method on 1 to 8 ranks of both worlds: ``make long``, job every_task."""
    methods = ["zero/3", "pipeline/interleaved", "pipeline/pipedream", "tensor/parallel"]
    report, _ = compare(methods, task, ranks=ranks, steps=1, batch=16, dtype="float64")
    check_equal(report, 1e-12)
    found = report["not_applicable"]
    assert found.keys() >= left_out.keys()
    for row, reason in left_out.items():
        assert reason in found[row]
    for reason in found.values():  # refusals, in words; no accident
        assert "Error" not in reason and "Deadlock" not in reason, reason
    assert len(report["rows"]) + len(found) == 1 + len(methods)


def test_more_stages_than_blocks_say_so_and_stop_nothing():
    report, _ = compare("data_parallel/ring,pipeline/gpipe", own.narrow, 40, steps=1, batch=40)
    assert variants(report) == [None, "ring"]
    assert "40 stages need as many blocks" in report["not_applicable"]["pipeline/gpipe"]


def test_a_straggler_and_a_machine_are_those_of_the_clock():
    slow = Machine(slowdown={1: 4.0}, bandwidth=1e8)
    even, _ = compare("data_parallel/ring", own.narrow, 2, steps=2, batch=8)
    report, _ = compare("data_parallel/ring", own.narrow, 2, LocalWorld(slow), steps=2, batch=8)
    assert report["machine"]["slowdown"] == {"1": "4.0"}
    assert reports.subject(report).endswith(
        "local world, virtual times of the machine 'laptop', slower: rank 1 4 times"
    )
    row = report["rows"][1]
    assert row["step_seconds"] > 3 * even["rows"][1]["step_seconds"]
    assert row["step_seconds"] == pytest.approx(row["predicted_step_seconds"])


def test_on_blocks_that_are_alike_sharding_is_seen_to_save_memory():
    report, _ = compare("data_parallel/ring,zero,pipeline/1f1b,tensor", steps=1)
    held = {
        row["variant"]: max(map(sum, zip(*row["peak_bytes"].values(), strict=True)))
        for row in report["rows"][1:]
    }
    assert held["3"] < held["2"] < held["1"] < held["ring"], held
    assert max(held["1f1b"], held["parallel"]) < held["1"], held


def test_every_word_is_explained():
    rows = rows_of(TASKS["gpt"])
    assert {row.split("/")[0] for row in rows} | {"own"} == FAMILIES.keys()
    assert {row for row in rows if "/" in row} == VARIANTS.keys()
    leaning = ("the same", "these", "this", "with two")
    assert not [row for row, text in VARIANTS.items() if text.startswith(leaning)], "stands alone"
    assert all(len(text) < 96 for words in (FAMILIES, VARIANTS) for text in words.values())
    from minidist.compare.report import CELLS

    assert COLUMNS.keys() == CELLS.keys()


def test_a_task_says_what_it_is_not():
    assert all(isinstance(task, Task) for task in TASKS.values())
    for wrong in (f"{HERE}:rows", f"{HERE}:Plain", "telepathy"):
        with pytest.raises((ValueError, TypeError), match=r"Task|unknown task|argument"):
            compare(task=wrong)


WRONG = {
    "model": [None, lambda: None, mlp(), lambda width: mlp()],
    "optimizer": [SGD(0.1), SGD, lambda: 0.1],
    "loss": [CrossEntropy(), "cross entropy"],
    "data": [lambda: fashion_mnist()[0], lambda: None, lambda: [1, 2], fashion_mnist()],
}


@pytest.mark.parametrize(("part", "wrong"), [(p, w) for p, all_ in WRONG.items() for w in all_])
def test_a_task_says_which_of_its_functions_is_wrong(part, wrong):
    with pytest.raises(ValueError, match=f"task 'narrow': {part} must be a function that returns"):
        task_of(replace(own.narrow(), **{part: wrong}))


def test_a_task_of_a_file_in_any_folder(tmp_path, monkeypatch):
    (tmp_path / "widths.py").write_text("width = 5\n")
    (tmp_path / "my.py").write_text(
        "from widths import width\nfrom tests.compare.own import narrow\n"
        "def wide(width=width): return narrow()\ndef lost(ranks): return narrow()\n"
    )
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", [*sys.path])
    try:
        for named in (f"{tmp_path}/my.py:wide", f"{tmp_path}/../{tmp_path.name}/my.py:wide"):
            assert task_of(named).name == "narrow"
        with pytest.raises(
            ValueError, match="called without arguments, to return a Task; it needs"
        ):
            task_of(f"{tmp_path}/my.py:lost")
        monkeypatch.chdir(tmp_path)
        for named in ("my:wide", "my.py:wide", "./my.py:wide"):
            assert task_of(named).name == "narrow"
    finally:
        for name in set(sys.modules) - before:
            del sys.modules[name]


def test_a_batch_smaller_than_the_ranks_leaves_no_row_out():
    report, _ = compare("mesh/every_axis", ranks=4, steps=1, batch=1)
    assert not report["not_applicable"]
    check_equal(report)


def test_ranks_that_share_no_memory_leave_out_what_needs_it(monkeypatch, capsys):
    def shared(comm, length, like):
        raise NoSharedMemory("shared(): only 1 of 2 ranks share the memory")

    # As on several machines: a trial in one process does not find out.
    monkeypatch.setattr(comparison, "refused", lambda *_, **__: {})
    monkeypatch.setattr(LocalComm, "_shared", shared)
    methods = "data_parallel/symmetric,data_parallel/ring"
    report, _ = compare(methods, own.narrow, ranks=2, steps=1, batch=8)
    assert variants(report) == [None, "ring"]
    reason = "shared(): only 1 of 2 ranks share the memory"
    assert report["not_applicable"] == {"data_parallel/symmetric": reason}
    reports.show(report, Console(width=100))
    assert f"left out: data_parallel/symmetric: {reason}" in capsys.readouterr().out
