"""``minidist compare``: its report is what it says, in both worlds, and its picture is drawn."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys

import pytest
from rich.console import Console

from minidist import LocalWorld, __version__
from minidist.cli import main
from minidist.cli.terminal import Live
from minidist.compare import DOZEN, compare, names
from minidist.compare import report as reports
from minidist.parallel import METHODS, Zero3
from minidist.privacy import PRIVATE_METHODS
from tests.mpi.run import mpiexec, needs_mpi

KEYS = {"minidist", "world", "library", "model", "dataset", "ranks", "steps", "batch", "dtype"}
KEYS |= {"task", "versions", "host", "machine", "algorithms", "not_applicable"}
ROW = {
    "method",
    "variant",
    "exact",
    "why_inexact",
    "loss",
    "loss_gap",
    "parameter_gap",
    "accuracy",
    "bytes_sent",
    "predicted_bytes_sent",
    "messages_sent",
    "uncounted",
    "predicted_messages_sent",
    "peak_bytes",
    "predicted_peak_bytes",
    "idle_fraction",
    "predicted_idle_fraction",
    "predicted_step_seconds",
    "step_seconds",
}


def check_report(report, ranks, bound):
    assert report.keys() >= KEYS | {"seed", "rows"}
    assert report["minidist"] == __version__
    assert report["host"]["cores"] >= 1 and report["versions"].keys() >= {"python", "numpy"}
    assert report["machine"]["flops"] > 0 and not report["not_applicable"]
    json.dumps(report, allow_nan=False)
    assert [f"{row['method']}/{row['variant']}" for row in report["rows"][1:]] == [
        key for key in METHODS | PRIVATE_METHODS if key != "serial"
    ]
    for row in report["rows"]:
        assert row.keys() == ROW, row.keys() ^ ROW
        assert len(row["loss"]) == report["steps"]
        assert 0 <= row["accuracy"] <= 1
        width = 1 if row["method"] == "serial" else ranks
        for measured, predicted in (
            (row["bytes_sent"], row["predicted_bytes_sent"]),
            (row["messages_sent"], row["predicted_messages_sent"]),
            *(
                (row["peak_bytes"][kind], row["predicted_peak_bytes"][kind])
                for kind in ("parameters", "gradients", "optimizer", "activations")
            ),
        ):
            assert measured == predicted, f"{row['method']}: {measured}, formula {predicted}"
            assert len(measured) == width
        if row["exact"]:
            assert row["loss_gap"] <= bound, (row["method"], row["loss_gap"])
            assert row["parameter_gap"] <= bound, (row["method"], row["parameter_gap"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "dtype", "bound"),
    [
        pytest.param(2, "float64", 1e-12, marks=pytest.mark.long),
        (3, "float32", 1e-4),
        (4, "float64", 1e-12),
    ],
)
def test_local_world(ranks, dtype, bound):
    world = LocalWorld()
    report, timelines = compare(
        "all", "mlp", ranks=ranks, world=world, steps=4, batch=50, dtype=dtype
    )
    check_report(report, ranks, bound)
    assert report["library"] is None
    for row in report["rows"]:
        for what in ("idle_fraction", "step_seconds"):  # of every row: nothing is unknown
            assert row[what] == pytest.approx(row[f"predicted_{what}"], rel=1e-9, abs=1e-9)
    for key, timeline in timelines.items():
        assert any(event.kind == "compute" for event in timeline[0]) or "server" in key


def test_a_short_last_batch_of_an_epoch_is_counted_as_it_is():
    report, _ = compare(["pipeline/gpipe"], "mlp", ranks=2, steps=3, batch=7000)
    row = report["rows"][1]
    assert row["bytes_sent"] == row["predicted_bytes_sent"]
    full, _ = compare(["pipeline/gpipe"], "mlp", ranks=2, steps=1, batch=7000)
    assert row["bytes_sent"][0] < full["rows"][1]["bytes_sent"][0], "the second batch has 3000"


@needs_mpi
def test_mpi_world_writes_table_picture_and_json(tmp_path):
    command = ["-m", "minidist", "compare", "--steps", "4", "--batch", "50", "--dtype", "float64"]
    command += ["--methods", "all", "--task", "mlp"]
    done = mpiexec(3, *command, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "data parallel ring " in done.stdout, "while it trains"
    assert re.search(r"│ data parallel  +│ +│", done.stdout), "a family in the table"
    assert "| **data parallel** per parameter |" in (tmp_path / "compare.md").read_text()
    report = json.loads((tmp_path / "compare.json").read_text())
    check_report(report, 3, 1e-12)
    assert report["world"] == "mpi" and report["library"]
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_command_line_in_the_local_world(tmp_path, capsys):
    command = ["compare", "--world", "local", "--ranks", "2", "--steps", "2", "--batch", "20"]
    command += ["--model", "mlp"]  # the option's name in version 0.1
    assert main([*command, "--methods", "pipeline", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "local world: 2 ranks in this process" in printed and "pipeline gpipe" in printed
    assert (
        "│ pipeline         │" in printed
        and "│   naive          │" in printed
        and "  gpipe   " in printed
    )
    report = json.loads((tmp_path / "compare.json").read_text())
    assert {row["method"] for row in report["rows"]} == {"serial", "pipeline"}
    assert (tmp_path / "compare.png").stat().st_size > 10_000


@pytest.mark.parametrize("width", [80, 100, 170])
def test_the_table_is_cut_into_parts_and_nothing_in_it(width):
    found, _ = compare(["parameter_server/async_colocated"], ranks=2, steps=2, batch=20)
    console = Console(width=width, record=True, file=io.StringIO())
    reports.show(found, console)
    printed = console.export_text()
    assert "…" not in printed
    for heading in reports.CELLS:
        assert printed.count(f" {heading} ┃") == 1, printed
    parts = printed.count("│ parameter server async colocated │")
    assert parts == {80: 3, 100: 2, 170: 1}[width]


@needs_mpi
def test_a_terminal_that_knows_no_size_sees_the_table_as_well(tmp_path):
    terminal, inside = pty.openpty()  # 0 by 0
    command = [sys.executable, "-m", "minidist", "compare", "--world", "mpi", "--ranks", "2"]
    command += [
        "--methods",
        "serial",
        "--task",
        "mlp",
        "--steps",
        "2",
        "--batch",
        "20",
        "--out",
        str(tmp_path),
    ]
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=inside, stderr=inside, env=environment
    )
    os.close(inside)
    printed = b""
    try:
        while chunk := os.read(terminal, 4096):
            printed += chunk
    except OSError:  # how Linux says that the other side has closed
        pass
    os.close(terminal)
    assert process.wait() == 0, printed.decode()
    assert "accuracy" in printed.decode() and "ms a step" in printed.decode()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--methods", "telepathy"], "telepathy"),
        (["--ranks", "0"], "--ranks must be at least 1, not 0"),
        (["--batch", "0"], "--batch must be"),
        (["--steps", "0"], "at least one step, not 0"),
        (["--task", "no_such_module:task"], "No module named 'no_such_module'"),
        (["--task", "json:dumps_"], "there is no 'dumps_' in"),
        (["--methods", "json:__name__"], "of type str, and cannot be called"),
        (["--task", "telepathy"], "unknown task 'telepathy'"),
        (["--task", "regresion"], "did you mean 'regression'?"),
        (["--task", ":x"], "write module:name"),
        (["--task", "sys:nothing"], "there is no 'nothing' in the module sys"),
        (["--task", "nowhere/my.py:task"], "there is no file "),
        (["--methods", "Zero"], "did you mean 'zero'?"),
        (["--methods", "pipeline/gpip"], "did you mean 'pipeline/gpipe'?"),
        (["--slowdown", "1=inf"], "is inf, not in"),
        (["--slowdown=-1=2"], "there is no rank -1"),
        (["--ranks", "1000000"], "1000000 ranks in this process need"),
        (["--slowdown", "3"], "write RANK=TIMES"),
        (["--world", "mpi", "--machine", "gigabit"], "--machine and --slowdown are for the local"),
        (["--algorithms", "/nowhere/compare.json"], "no algorithms can be read"),
        (["--out", "/proc/nowhere"], "nothing can be written to /proc/nowhere"),
    ],
)
def test_bad_options_are_refused_in_a_line(options, message, capsys, tmp_path):
    assert main(["compare", "--world", "local", "--out", str(tmp_path), *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ("compare.json", "compare.md", "compare.png"))
def test_a_folder_in_the_place_of_a_file_is_found_before_training(name, capsys, tmp_path):
    (tmp_path / name).mkdir()
    assert main(["compare", "--world", "local", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert f"{name} is a folder there" in said.err and "loss" not in said.out


def test_only_rank_0_asks_for_the_cost_which_is_of_all_ranks(monkeypatch):
    asked = []
    cost = Zero3.cost
    monkeypatch.setattr(
        Zero3, "cost", lambda method, *rest: asked.append(method.comm.rank) or cost(method, *rest)
    )
    compare("zero/3", "regression", ranks=5, steps=2, batch=8)
    assert set(asked) == {0}, "p ranks that ask for p costs each take p² of them"


def test_equal_means_equal_on_every_rank():
    cell = reports.CELLS["messages"]
    row = {"messages_sent": [1, 5], "predicted_messages_sent": [1, 5]}
    assert cell(row) == "5 (=)"
    assert cell(row | {"predicted_messages_sent": [2, 5]}) == "5 (5)", "rank 0 differs"
    assert cell(row | {"predicted_messages_sent": [1, 6]}) == "5 (6)"


def test_names():
    assert names("all", "mlp") == list(METHODS | PRIVATE_METHODS)
    assert names("default") == names("default", "gpt") == list(DOZEN)
    assert set(names("all", "gpt")) - set(names("all", "mlp")) == {
        "tensor/sequence",
        "mesh/sequence",
    }
    assert names("pipeline/gpipe") == ["serial", "pipeline/gpipe"]
    assert set(names("pipeline,data_parallel")) > {"serial", "data_parallel/ring"}


@pytest.mark.slow
def test_regression_has_no_accuracy_and_the_same_formulas():
    """Two numbers a sample: nothing to guess, and every method learns and sends what it should."""
    report, _ = compare("all", model="regression", ranks=3, steps=3, batch=50, dtype="float64")
    assert report["dataset"] == "synthetic waves"
    assert {row.pop("accuracy") for row in report["rows"]} == {None}
    for row in report["rows"]:
        assert row["peak_bytes"] == row["predicted_peak_bytes"], row["method"]
        assert row["bytes_sent"] == row["predicted_bytes_sent"], row["method"]
        if row["exact"]:
            assert row["loss_gap"] <= 1e-12 and row["parameter_gap"] <= 1e-12, row["method"]
    json.dumps(report, allow_nan=False)


def test_progress_names_rows_as_the_table_does():
    stream = io.StringIO()
    live = Live(Console(file=stream), ["serial", "zero/1", "local_sgd/average", "own/My_Own"], 2)
    for key in live.names:
        live.update(key, 2, 2, 0.5)
    said = [line.split(" 2 steps")[0].strip() for line in stream.getvalue().splitlines()]
    assert said == ["serial", "ZeRO stage 1", "local SGD average", "own My_Own"]


def test_a_slow_rank_that_is_not_there_is_refused(tmp_path, capsys):
    arguments = ["--methods", "data_parallel/ring", "--slowdown", "2=4", "--ranks", "2"]
    assert main(["compare", *arguments, "--out", str(tmp_path)]) == 2
    assert "--slowdown 2=...: there are ranks 0 to 1 only" in capsys.readouterr().err
