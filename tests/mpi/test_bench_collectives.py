"""``minidist bench collectives`` and ``minidist trace`` on real ranks: small, but all of it."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest

from minidist.bench import collectives as bench
from minidist.bench import collectives_report as report
from minidist.bench import point_to_point, tracing, turns
from minidist.bench.collectives_measured import possible
from minidist.bench.kinds import KINDS
from minidist.bench.peers import has_torch, torch_ranks
from minidist.collectives import recursive_doubling, ring
from minidist.comm import CommError, LocalWorld, launch, tuning
from minidist.comm.errors import NoSharedMemory
from minidist.comm.local.comm import LocalComm
from tests.mpi.run import mpiexec, needs_mpi

REPORT = {
    "ranks": 2,
    "library": "MPI 1",
    "point_to_point": [
        {"bytes": 8, "seconds": 1.0, "exchange_seconds": 1.0},
        {"bytes": 108, "seconds": 2.0, "exchange_seconds": 1.0},
    ],
    "rows": [
        {
            "collective": "all_reduce",
            "bytes": nbytes,
            "seconds": {"library": library, "ring": ring, "gloo": 0.5, "auto": 0.5},
            "exchange_seconds": 1.0,
        }
        for nbytes, library, ring in ((8, 1.0, 3.0), (32, 2.0, 2.5), (128, 9.0, 4.0))
    ],
}


@needs_mpi
def test_bench_collectives_measures_checks_draws_and_tunes(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIDIST_TUNING", str(tmp_path / "tuned.json"))
    done = mpiexec(
        2, "-m", "minidist", "bench", "collectives", "--largest", "128", "--turns", "1",
        "--tune", "--out", str(tmp_path), "--json", str(tmp_path / "copy.json"),
        "--gloo", '{"8": 0.25}',
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "collectives.json").read_text())
    assert json.loads((tmp_path / "copy.json").read_text()) == report
    assert [row["bytes"] for row in report["rows"]] == [8, 16, 64]
    assert report["rows"][0]["seconds"].pop("gloo") == 0.25
    for row in report["rows"]:
        assert row["collective"] == "all_reduce"
        assert set(row["seconds"]) == set(bench.algorithms("all")) - report["left_out"].keys()
        assert all(seconds > 0 for seconds in row["seconds"].values())
        assert row["messages"]["library"] is None, "nobody can count these"
        assert row["messages"]["ring"] == 2
        if len(os.sched_getaffinity(0)) >= 2:
            assert 1e-9 < row["cache_line_seconds"] < 1e-3
    assert (tmp_path / "collectives.png").exists()
    assert [row["bytes"] for row in report["point_to_point"]] == [8, 16, 64]
    assert all(row["seconds"] > 0 for row in report["point_to_point"])
    calls = report["tracing"]["calls"]
    assert calls == {"rounds": 1, "steps": 0, "records": 1}, "what tracing costs, when off"
    assert np.isfinite(report["tracing"]["share"])
    tuned = json.loads((tmp_path / "tuned.json").read_text())[report["library"]]["2"]
    assert [nbytes for nbytes, _ in tuned] == [8, 16, 64]


@needs_mpi
def test_every_collective_is_measured_beside_the_librarys(tmp_path):
    done = mpiexec(
        3, "-m", "minidist", "bench", "collectives", "--collective", "all", "--largest", "64",
        "--turns", "1", "--out", str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "collectives.json").read_text())
    rows, left_out = report["rows"], report["left_out"].keys()
    assert left_out <= {"cross_memory"}, "the only one that the system may forbid here"
    assert {row["collective"] for row in rows} == set(KINDS)
    for row in rows:
        kind = KINDS[row["collective"]]
        assert set(row["seconds"]) == set(kind.run) - left_out
        assert set(row["predicted_seconds"]) == set(kind.cost) - left_out
        assert all(seconds > 0 for seconds in row["seconds"].values())
        if len(os.sched_getaffinity(0)) < 3:
            assert row["cache_line_seconds"] is None, "ranks that take turns on a core"
    assert {row["bytes"] for row in rows if row["collective"] == "all_to_all"} == {12, 24, 72}
    assert "barrier on 3 ranks" in done.stdout


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_results_are_checked_before_they_are_timed(kind):
    """The true algorithms pass; one that does nothing, or too much, is caught on some rank."""
    if kind.name == "barrier":
        return
    wrong = replace(
        kind, run={"idle": lambda comm, *arrays: None, "more": lambda comm, *a: a[-1].fill(77)}
    )

    def check(comm, kind, name):
        try:
            kind.check(comm, name, 12, "int32", kind.arrays(comm, name, 12, "int32"))
        except ArithmeticError as error:
            return str(error)
        return None

    for name in kind.cost:
        assert launch(lambda comm, n=name: check(comm, kind, n), 3, LocalWorld()) == [None] * 3
    for name in wrong.run:
        found = launch(lambda comm, n=name: check(comm, wrong, n), 3, LocalWorld())
        assert any(f"{kind.name} by {name} on 3 ranks" in str(text) for text in found)


def test_what_these_ranks_cannot_run_is_left_out_with_the_reason(monkeypatch):
    def forbidden(comm):
        raise NoSharedMemory("not allowed here")

    monkeypatch.setattr(LocalComm, "_cross_memory", forbidden)

    def main(comm):
        left_out = {}
        wanted = ["ring", "cross_memory", "shared_memory"]
        return possible(comm, KINDS["all_reduce"], wanted, left_out), left_out

    expected = ["ring", "shared_memory"], {"cross_memory": "not allowed here"}
    assert launch(main, 2, LocalWorld()) == [expected] * 2


@pytest.mark.skipif(find_spec("torch") is None, reason="no torch beside us")
def test_gloo_is_timed_at_every_size():
    wanted = ["[8, 16, 64]", "float64", "2"]
    found = torch_ranks(sys.executable, "minidist.bench.peer_gloo", wanted, 2)
    assert list(found) == ["8", "16", "64"]
    assert all(seconds > 0 for seconds in found.values())


def test_a_python_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match="--torch no-such-python: there is no such program"):
        has_torch("no-such-python")


def test_point_to_point_is_a_line_between_measured_sizes():
    rows = REPORT["point_to_point"]
    got = [point_to_point.seconds_for(rows, nbytes) for nbytes in (4, 8, 33, 108, 208)]
    assert got == pytest.approx([1.0, 1.0, 1.25, 2.0, 3.0])
    assert [row["piece_bandwidth"] for row in point_to_point.pieces(rows)] == [None, 100.0]
    flat = [rows[0], dict(rows[0], bytes=16)]
    assert [row["piece_bandwidth"] for row in point_to_point.pieces(flat)] == [None, None]


def test_a_cache_line_needs_two_ranks_that_run_at_once():
    with pytest.raises(CommError, match="cache_line needs ranks that run at the same time"):
        launch(point_to_point.cache_line, 2, LocalWorld())


def test_tracing_when_off_costs_two_looks_and_a_call():
    """By counts, not by time: no step is named and nothing is kept, in either half of a ring."""

    def run(comm):
        array = np.ones(1024, np.float32)
        counted = [
            tracing.count(comm, lambda a=algorithm: a(comm, array))
            for algorithm in (recursive_doubling.all_reduce, ring.all_reduce)
        ]
        assert comm.step("one") is comm.step("another"), "a step when off is no new object"
        assert isinstance(comm.rounds("all-gather", 3), range)
        return counted, comm.trace.events, comm.trace.names

    counts = [{"rounds": 1, "steps": 0, "records": 2}, {"rounds": 2, "steps": 0, "records": 6}]
    for counted, events, names in launch(run, 4, LocalWorld()):
        assert (counted, events, names) == (counts, [], [])


@needs_mpi
def test_trace_aligns_the_clocks_of_mpi_ranks(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIDIST_TRACE", str(tmp_path))
    script = tmp_path / "script.py"
    script.write_text(
        "import numpy as np\n"
        "from minidist.collectives import ring\n"
        "from minidist.comm import launch\n"
        "launch(lambda comm: ring.all_reduce(comm, np.ones(8)))\n"
    )
    done = mpiexec(3, str(script))
    assert done.returncode == 0, done.stderr
    events = json.loads((tmp_path / "trace-1.json").read_text())["traceEvents"]
    begin = {e["id"]: e["ts"] for e in events if e["ph"] == "s"}
    end = {e["id"]: e["ts"] for e in events if e["ph"] == "f"}
    assert len(begin) == 12
    assert all(end[number] > begin[number] for number in begin), "received before it was sent"


def test_bandwidths_are_those_of_nccl_tests():
    assert report.bus_bandwidth(100, 2.0, 4) == pytest.approx(100 / 2 * 2 * 3 / 4)
    for kind in ("reduce_scatter", "all_gather", "gather", "scatter", "all_to_all"):
        assert report.bus_bandwidth(100, 2.0, 4, kind) == pytest.approx(100 / 2 * 3 / 4)
    for kind in ("broadcast", "reduce"):
        assert report.bus_bandwidth(100, 2.0, 4, kind) == pytest.approx(100 / 2)
    assert report.limit(REPORT, REPORT["rows"][0]) == pytest.approx(8 / 2.0)
    one_way = {"collective": "scatter", "bytes": 216}
    assert report.limit(REPORT, one_way) == pytest.approx(108 / 2.0)
    assert bench.sizes(1000) == [8, 16, 64, 256]


def test_crossover_is_between_the_sizes():
    assert report.crossovers(REPORT["rows"]) == [(8, "library"), (64.0, "ring")]


def test_tune_keeps_the_fastest(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIDIST_TUNING", str(tmp_path / "tuned.json"))
    bench.tune([REPORT])
    assert json.loads((tmp_path / "tuned.json").read_text()) == {
        "MPI 1": {"2": [[8, "library"], [32, "library"], [128, "ring"]]}
    }


def test_tune_takes_what_is_never_far_from_the_fastest(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIDIST_TUNING", str(tmp_path / "tuned.json"))
    unlucky = json.loads(json.dumps(REPORT))
    unlucky["rows"][0]["seconds"]["library"] = 12.0  # four times the ring; else a third
    bench.tune([REPORT, unlucky, REPORT])
    tuned = json.loads((tmp_path / "tuned.json").read_text())["MPI 1"]["2"]
    assert tuned == [[8, "ring"], [32, "library"], [128, "ring"]]


def test_the_report_says_how_near_auto_comes():
    found = json.loads(json.dumps(REPORT))
    for row, seconds in zip(found["rows"], (1.1, 2.3, 4.0), strict=True):
        row["seconds"]["auto"] = seconds
    assert report.how_near(found) == (
        "auto is within 10% of the fastest at 2 of 3 sizes; at worst it takes 1.15 times as long, "
        "at 32 bytes"
    )
    for row in found["rows"]:
        del row["seconds"]["auto"]
    assert report.how_near(found) is None


def test_every_call_is_on_data_just_written():
    seen = []
    array = np.ones(3)

    def call():
        seen.append(array.copy())
        array.fill(7)

    assert turns.Call(call, (array,)).seconds(4) > 0
    assert [x.tolist() for x in seen] == [[0, 0, 0]] * 4


def test_every_turn_has_an_order_of_its_own_the_same_on_all_ranks(monkeypatch):
    monkeypatch.setattr(turns.Call, "seconds", lambda call, repeats: call.function() or 1.0)

    def main(comm):
        seen = []
        calls = {name: turns.Call(lambda name=name: seen.append(name)) for name in "abcd"}
        turns.least_seconds(comm, calls, 6)
        once = "".join(seen[::2])  # a warm-up before each
        return [once[start : start + 4] for start in range(0, len(once), 4)]

    orders, other = launch(main, 2, LocalWorld())
    assert orders == other
    assert len(orders) == 8
    assert {"".join(sorted(order)) for order in orders} == {"abcd"}
    assert len(set(orders)) > 4


def test_the_least_turn_counts_as_long_as_its_slowest_rank(monkeypatch):
    """Rank 0 always takes 2 s; rank 1 takes 3 s and more, at its best in the third turn."""
    mine = {0: [2.0] * 9, 1: [9.0, 9.0, 5.0, 4.0, 3.0, 6.0]}

    monkeypatch.setattr(turns.Call, "seconds", lambda call, repeats: call.function())

    def timed(comm):
        answers = iter([x for x in mine[comm.rank] for _ in range(2)])  # a warm-up before each
        return turns.least_seconds(comm, {"a": turns.Call(lambda: next(answers))}, 4)

    assert launch(timed, 2, LocalWorld()) == [{"a": 3.0}] * 2


def test_unknown_algorithms_are_named():
    with pytest.raises(
        ValueError, match="unknown algorithm 'magic': choose among library, central"
    ):
        bench.algorithms("ring,magic")
    assert bench.algorithms("ring,bruck", "all_gather") == ["ring", "bruck"]
    assert bench.algorithms("chain", "all_gather") == []
    with pytest.raises(ValueError, match="unknown collective 'scan': choose among all_reduce"):
        bench.kinds("scan")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tune", "--collective", "broadcast"], "--tune is for --collective all_reduce"),
        (["--algorithms", "auto"], "nothing to compare auto with: add one of library, central"),
    ],
)
def test_what_could_only_fail_after_measuring_is_refused_before(arguments, message, capsys):
    with pytest.raises(SystemExit):
        bench.run(arguments)
    assert message in capsys.readouterr().err


def test_a_table_measured_on_one_machine_is_for_one_machine():
    here = {"2": [[8, "library"], [64, "shared_memory"]], "4": [[8, "ring"]]}
    here["8"] = [[8, "cross_memory"]]
    assert tuning.usable(here, one_machine=True) == here
    assert tuning.usable(here, one_machine=True, crowded=True) == tuning.ONE_MACHINE | here
    assert tuning.usable(here, one_machine=False) == {"4": [[8, "ring"]]}
    assert tuning.usable({}, one_machine=True, crowded=True) == tuning.ONE_MACHINE


def test_the_median_of_several_launches_counts():
    reports = [{"rows": [{"name": "ring", "seconds": s, "auto": None}]} for s in (3.0, 9.0, 1.0)]
    assert report.median_of(reports) == {"rows": [{"name": "ring", "seconds": 3.0, "auto": None}]}
    assert report.median_of([None, 2.0, 1.0]) == 1.0, "not every launch could tell"


@needs_mpi
def test_every_launch_is_on_ranks_of_its_own(tmp_path, capfd):
    wanted = ["--launches", "2", "--largest", "8", "--turns", "1", "--algorithms", "ring"]
    assert bench.run([*wanted, "--torch", "false", "--out", str(tmp_path)]) == 0
    printed = capfd.readouterr().out
    assert "launch 2 of 2" in printed
    assert printed.count("all reduce on 2 ranks") == 1
    report = json.loads((tmp_path / "collectives.json").read_text())
    assert [row["bytes"] for row in report["rows"]] == [8, 16]
