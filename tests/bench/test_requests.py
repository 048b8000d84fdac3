"""Many requests, measured beside predicted: bytes and memory are equal, cells are readable."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from minidist import LocalWorld, Machine, launch
from minidist.bench import requests_jobs
from minidist.bench.requests import cell, errors, markdown, run, show
from minidist.bench.requests_jobs import answered, model_of, requests, simulated, ways
from minidist.models import gpt


def test_bytes_and_memory_of_every_way_are_predicted(monkeypatch):
    monkeypatch.setattr(requests_jobs, "gpt", lambda *_: gpt(63, 128, 32, 2, 2))
    asked, rows, streams = requests(4, 3), [], []
    for way in ways(2, 3):
        model = model_of(way, "")
        measured = launch(
            lambda comm, way=way, model=model: answered(comm, way, model, asked), way.ranks,
            LocalWorld(),
        )[0]  # fmt: skip
        predicted = simulated(way, Machine(launch=1e-6), asked)
        for what in ("sent", "memory"):
            assert measured[what] == predicted[what], (way.name, what)
        assert (measured["sent"] > 0) == (way.ranks > 1)
        rows.append({"way": way.name, "ranks": way.ranks} | locals_of(measured, predicted))
        streams.append({"way": way.name, "load": 0.5, "rate": 2.0, "places": 3,
                        "service": [1.0, 0.5]} | locals_of(measured, predicted))  # fmt: skip
    text = io.StringIO()
    show({"rows": rows, "streams": streams}, Console(file=text, width=200))
    assert "layers cut over 2 ranks" in text.getvalue() and "(=)" in text.getvalue()
    assert "444 | 23" in text.getvalue()  # Erlang, ms: three places, of which 2 and 1 are busy


def locals_of(measured, predicted):
    return {"measured": measured, "predicted": predicted}


def test_a_cell_has_both_numbers_or_one_if_they_read_the_same():
    assert cell((1.04, 1.2), lambda x: f"{x:.1f}") == "1.0 | 1.2"
    assert cell((1.04, 1.0), lambda x: f"{x:.1f}") == "1.0 (=)"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--new", "70"], "--new must be 1 to 69"),
        (["--ranks", "0"], "must be at least 1"),
        (["--loads", "0.5,1.2"], "lie between 0 and 1"),
        (["--loads", "nan"], "lie between 0 and 1"),
        (["--loads", "half"], "numbers with commas"),
        (["--stream", "0"], "must be at least 1"),
        (["--trained", "no such file"], "there is no file no such file"),
        (["--page", "README.md"], "no page with the line"),  # before minutes of measuring
    ],
)
def test_wrong_arguments_are_refused(arguments, words, capsys):
    with pytest.raises(SystemExit):
        run(arguments)
    assert words in capsys.readouterr().err


def test_all_ways_are_measured_first_and_then_predicted_on_typical_machines(monkeypatch, capsys):
    """In the local world; rank 1 sleeps while rank 0 answers alone."""
    monkeypatch.setattr(requests_jobs, "gpt", lambda *_: gpt(63, 128, 32, 1, 2))
    speeds = iter(range(1, 100))

    def calibrated(comm):
        return Machine(launch=1e-6 * next(speeds)) if comm.rank == 0 else Machine()

    monkeypatch.setattr(requests_jobs, "machine_here", calibrated)
    settings = {"count": 3, "new": 2, "at_once": 2, "stream": 2, "loads": [0.5], "turns": 1,
                "trained": ""}  # fmt: skip
    launch(lambda comm: requests_jobs.main(comm, settings), 2, LocalWorld())
    result = json.loads(capsys.readouterr().out.removeprefix(requests_jobs.MARK))
    assert [row["way"] for row in result["rows"]] == [way.name for way in ways(2, 2)]
    assert [row["way"] for row in result["streams"]] == [
        "2 at once", "2 replicas", "layers cut over 2 ranks", "2 stages"
    ]  # fmt: skip
    for row in result["rows"] + result["streams"]:
        assert row["measured"]["memory"] == row["predicted"]["memory"] > 0
        assert row["predicted"]["tokens_a_second"] > 0
    # Machines 1 to 4 were calibrated before the ways on one rank, 5 to 7 before those on two.
    launches = [result["machines"][size]["launch"] for size in ("1", "2")]
    assert launches == pytest.approx([2.5e-6, 6e-6])


def test_errors_are_shares_of_what_was_measured():
    def one(each, tokens):
        return {"each": [each, 0], "tokens_a_second": tokens}

    rows = [{"measured": one(2.0, 100), "predicted": one(each, 90)} for each in (1.0, 2.2, 2.8)]
    assert errors(rows) == (
        "ms a token predicted with a median error of 40%, from -50% to +40%; tokens a second "
        "predicted with a median error of 10%, from -10% to -10%"
    )


def test_the_page_has_the_same_numbers():
    row = {"tokens_a_second": 5.0, "first": [0.1, 0.2], "each": [0.01, 0.02], "memory": 1e6,
           "sent": 2e3}  # fmt: skip
    both = {"measured": row, "predicted": row | {"tokens_a_second": 6.0}}
    text = markdown({"rows": [{"way": "2 at once", "ranks": 1, **both}], "streams": []})
    assert "| 2 at once | 1 | 5 / 6 | 100 (=) | 200 (=) | 10.00 (=) |" in text
    assert text.count("\n| --- | ---: |") == 2 and "One rank: ms a token predicted" in text
