"""The scaling bench: its virtual part is exact, and its summary says what the rows say."""

from __future__ import annotations

import json

import pytest

from minidist.bench import scaling
from tests.mpi.run import needs_mpi


def test_virtual_times_equal_the_formula_on_every_machine():
    rows = scaling._virtual(8)
    assert [row["ranks"] for row in rows] == [1, 2, 4, 8] * len(scaling.MACHINES)
    for row in rows:
        assert row["seconds"] == pytest.approx(row["predicted_seconds"], rel=1e-9), row


def row(library, ranks, what, rate, seconds):
    return {
        "model": "mlp",
        "library": library,
        "ranks": ranks,
        "what": what,
        "seconds": seconds,
        "best_seconds": seconds,
        "samples_per_second": rate,
        "best_samples_per_second": rate,
        "times": [seconds, 2 * seconds, 1.5 * seconds],
    }


def test_summary():
    rows = [
        row("minidist", 1, "weak, flat", 100, 1.0),
        row("minidist", 2, "weak, flat", 180, 1.1),
        row("minidist", 2, "weak, overlapped", 190, 1.05),
        row("torch", 1, "weak, DDP", 80, 1.2),
        row("torch", 2, "weak, DDP", 95, 1.4),
        row("minidist", 2, "compute alone", 100, 1.0),
        row("minidist", 2, "communicate alone", 0, 0.2),
    ]
    strong, weak = scaling.summary(rows)
    assert strong["speedup"] is None
    assert weak["speedup"] == pytest.approx(1.9)
    assert (weak["over_torch_1"], weak["over_torch_2"]) == (pytest.approx(1.25), pytest.approx(2))
    assert weak["efficiency"] == pytest.approx(1 / 1.1)
    assert weak["hidden"] == pytest.approx(0.75), "0.15 of the 0.2 seconds cost nothing"


def test_unknown_model_is_refused(capsys):
    with pytest.raises(SystemExit):
        scaling.run(["--models", "bert"])
    assert "bert" in capsys.readouterr().err


@needs_mpi
def test_command_writes_report_and_picture(tmp_path, capsys):
    arguments = ["--models", "mlp", "--steps", "1", "--ranks", "2", "--torch", "false"]
    assert scaling.run([*arguments, "--json", "--out", str(tmp_path)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((tmp_path / "scaling.json").read_text())
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
    found = {(row["library"], row["ranks"]) for row in report["real"]}
    assert found == {("minidist", 1), ("minidist", 2)}
