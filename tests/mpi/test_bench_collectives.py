"""``minidist bench collectives`` and ``minidist trace`` on real ranks: small, but all of it."""

from __future__ import annotations

import json

import pytest

from minidist.bench import collectives as bench
from tests.mpi.run import mpiexec, needs_mpi

REPORT = {
    "ranks": 2,
    "library": "MPI 1",
    "rows": [
        {"bytes": 8, "seconds": {"library": 1.0, "ring": 3.0}, "exchange_seconds": 1.0},
        {"bytes": 32, "seconds": {"library": 2.0, "ring": 2.5}, "exchange_seconds": 1.0},
        {"bytes": 128, "seconds": {"library": 9.0, "ring": 4.0}, "exchange_seconds": 1.0},
    ],
}


@needs_mpi
def test_bench_collectives_measures_checks_draws_and_tunes(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIDIST_TUNING", str(tmp_path / "tuned.json"))
    done = mpiexec(
        2, "-m", "minidist", "bench", "collectives", "--largest", "128", "--turns", "1",
        "--tune", "--out", str(tmp_path), "--json", str(tmp_path / "copy.json"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "collectives.json").read_text())
    assert json.loads((tmp_path / "copy.json").read_text()) == report
    assert [row["bytes"] for row in report["rows"]] == [8, 16, 64]
    for row in report["rows"]:
        assert set(row["seconds"]) == set(bench.algorithms("all"))
        assert all(seconds > 0 for seconds in row["seconds"].values())
        assert row["messages"]["library"] is None, "nobody can count these"
        assert row["messages"]["ring"] == 2
    assert (tmp_path / "collectives.png").exists()
    tuned = json.loads((tmp_path / "tuned.json").read_text())[report["library"]]["2"]
    assert [nbytes for nbytes, _ in tuned] == [8, 16, 64]


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
    assert bench.bus_bandwidth(100, 2.0, 4) == pytest.approx(100 / 2 * 2 * 3 / 4)
    assert bench.limit(REPORT["rows"][0], 2) == pytest.approx(8 / 2.0)
    assert bench.sizes(1000) == [8, 16, 64, 256]


def test_crossover_is_between_the_sizes():
    assert bench.crossovers(REPORT) == [(8, "library"), (64.0, "ring")]


def test_tune_keeps_the_fastest(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIDIST_TUNING", str(tmp_path / "tuned.json"))
    bench.tune(REPORT)
    assert json.loads((tmp_path / "tuned.json").read_text()) == {
        "MPI 1": {"2": [[8, "library"], [32, "library"], [128, "ring"]]}
    }


def test_unknown_algorithms_are_named():
    with pytest.raises(
        ValueError, match="unknown algorithm 'magic': choose among library, central"
    ):
        bench.algorithms("ring,magic")
