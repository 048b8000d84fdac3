"""Many requests, measured beside predicted: bytes and memory are equal, cells are readable."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from minidist import LocalWorld, Machine, launch
from minidist.bench import requests_jobs
from minidist.bench.requests import cell, run, show
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
    ],
)
def test_wrong_arguments_are_refused(arguments, words, capsys):
    with pytest.raises(SystemExit):
        run(arguments)
    assert words in capsys.readouterr().err
