"""The scaling bench: its virtual part is exact, and its summary says what the rows say."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from minidist import LocalWorld, Machine, launch
from minidist.bench import engine, scaling, scaling_jobs, scaling_virtual
from minidist.data import Batches
from minidist.nn import CrossEntropy
from minidist.optim import SGD
from minidist.parallel import DataParallel, Overlapped
from tests.mpi.run import needs_mpi


def test_jobs_are_the_largest_mlp_and_the_middle_gpt_of_the_engine_bench():
    names = {case.name: case for case in engine.cases()}
    for name, job in (("MLP 512×784-1024-1024-10", "mlp"), ("GPT 8×128×256×4", "gpt")):
        ours = scaling.JOBS[job]
        assert ours.data(ours.batch).inputs.shape == names[name].inputs.shape
        expected = {n: p.declared for n, p in names[name].model.named_parameters().items()}
        assert {n: p.declared for n, p in ours.model().named_parameters().items()} == expected


def test_virtual_times_equal_the_formula_on_every_machine():
    rows = scaling_virtual.virtual(8)
    assert [row["ranks"] for row in rows] == [1, 2, 4, 8] * len(scaling_virtual.MACHINES)
    for row in rows:
        assert row["seconds"] == pytest.approx(row["predicted_seconds"], rel=1e-9), row


def test_a_virtual_rank_takes_as_long_as_one_that_computes_its_whole_batch(monkeypatch):
    """One sample of 8 on a machine an eighth as fast, in shared memory; and the real thing."""
    small = replace(scaling.JOBS["mlp"], shape=(20, 300, 200, 10), batch=8)
    monkeypatch.setitem(scaling_virtual.JOBS, "mlp", small)
    monkeypatch.setattr(scaling_virtual, "BUCKET_MB", 0.1)
    machine = Machine("m", 1e-5, 1e8, 3e8, 1e9)

    def run(comm):
        method = Overlapped(small.model(), CrossEntropy(), SGD(0.0), comm, bucket_mb=0.1)
        comm.barrier()
        start = comm.time()
        method.step(Batches(small.data(24), 24)[0])
        return comm.time() - start

    expected = max(launch(run, 3, LocalWorld(machine)))
    assert scaling_virtual._step(machine, 3)["seconds"] == pytest.approx(expected, rel=1e-9)


def row(library, ranks, what, samples, seconds, cpu=1.0):
    times = [seconds, 2 * seconds, 1.5 * seconds]
    found = {"model": "mlp", "library": library, "ranks": ranks, "what": what}
    found |= {"samples": samples, "times": times, "cpu": [cpu * second for second in times]}
    return found | scaling.statistics(found)


def test_summary():
    rows = [
        row("minidist", 1, "weak, flat", 150, 1.0),
        row("minidist", 2, "weak, flat", 300, 1.1),
        row("minidist", 2, "weak, overlapped", 300, 1.05),
        row("torch", 1, "weak, DDP", 150, 1.25),
        row("torch", 2, "weak, DDP", 300, 2.1),
        row("minidist", 2, "compute", 150, 1.0),
        row("minidist", 2, "communicate", 300, 0.2),
        row("minidist", 2, "link, flat", 300, 1.4, cpu=0.75),
        row("minidist", 2, "link, overlapped", 300, 1.2)
        | {"link_seconds": 0.1, "saved_by_formula": 0.1},
    ]
    strong, weak = scaling.summary(rows)
    assert strong["speedup"] is None
    assert weak["speedup"] == pytest.approx(2 / 1.05)
    assert (weak["over_torch_1"], weak["over_torch_2"]) == (pytest.approx(1.25), pytest.approx(2))
    assert weak["torch_speedup"] == pytest.approx(2 * 1.25 / 2.1)
    assert weak["ceiling"] == pytest.approx(2)
    assert weak["efficiency"] == pytest.approx(1 / 1.1)
    assert weak["hidden"] == pytest.approx(0.75), "0.15 of the 0.2 seconds cost nothing"
    assert (weak["core_busy"], weak["core_busy_on_link"]) == (pytest.approx(1), pytest.approx(0.75))
    # 0.3 + 0.1 s on the link of which 0.4 + 1.5 - 1.8 are hidden, in the middle one of the turns
    assert weak["hidden_on_link"] == pytest.approx(0.1 / 0.4)
    assert weak["hidden_by_formula"] == pytest.approx(0.1 / 0.4)


def test_the_link_takes_what_its_formula_says(monkeypatch):
    slept = []
    monkeypatch.setattr(scaling_jobs.time, "sleep", slept.append)
    job = replace(scaling.JOBS["mlp"], shape=(20, 300, 200, 10), batch=8)

    def run(comm):
        for sync in (scaling_jobs.AllReduceOnLink, scaling_jobs.BucketsOnLink):
            method = DataParallel(job.model(), CrossEntropy(), SGD(0.1), comm, sync=sync)
            method.step(Batches(job.data(16), 16)[0])

    launch(run, 2, LocalWorld())
    n = 4 * (20 * 300 + 300 + 300 * 200 + 200 + 200 * 10 + 10 + 1)
    whole = 2 * (50e-6 + n / 2 / 117e6)
    assert slept[:2] == pytest.approx([whole, whole])
    buckets = len(slept[2:]) // 2  # each of both ranks; a bucket more is two latencies more
    assert sum(slept[2:]) == pytest.approx(2 * (whole + (buckets - 1) * 2 * 50e-6), rel=1e-4)


def test_unknown_model_is_refused(capsys):
    with pytest.raises(SystemExit):
        scaling.run(["--models", "bert"])
    assert "bert" in capsys.readouterr().err


@needs_mpi
@pytest.mark.long
def test_command_writes_report_and_picture(tmp_path, capsys):
    arguments = ["--models", "mlp", "--steps", "1", "--rounds", "2", "--ranks", "2"]
    arguments += ["--torch", "false", "--out", str(tmp_path), "--json", str(tmp_path / "copy.json")]
    assert scaling.run(arguments) == 0
    assert "2 ranks over 1" in capsys.readouterr().out
    report = json.loads((tmp_path / "scaling.json").read_text())
    assert report == json.loads((tmp_path / "copy.json").read_text())
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
    found = {(row["library"], row["ranks"]) for row in report["real"]}
    assert found == {("minidist", 1), ("minidist", 2)}
    assert all(len(row["times"]) == len(row["cpu"]) == 2 for row in report["real"]), "two rounds"
    assert report["summary"][1]["hidden_by_formula"] > 0
