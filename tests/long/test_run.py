"""The runner of long jobs goes on where it ended; property tests can be told to draw more."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.examples import examples
from tests.long import run
from tests.long.run import JOBS, ROOT, Job, main

TRIES = "open('{}', 'a').write('x'); print('hello'); {}"


@pytest.fixture
def jobs(tmp_path):
    """One that succeeds, one that fails until a file called "mended" is there; both leave marks."""
    mended = tmp_path / "mended"
    fails = f"import os, sys; sys.exit(0 if os.path.exists('{mended}') else 'not yet')"
    return {
        "good": Job("succeeds", ["-c", TRIES.format(tmp_path / "good.tries", "")]),
        "bad": Job("fails", ["-c", TRIES.format(tmp_path / "bad.tries", fails)]),
    }


def tries(tmp_path):
    return [(tmp_path / f"{name}.tries").read_text() for name in ("good", "bad")]


def test_a_second_call_goes_on_where_the_first_one_ended(jobs, tmp_path, capsys):
    assert main([], jobs, tmp_path) == 1, "one failed"
    assert tries(tmp_path) == ["x", "x"], "a job that fails stops no other"
    printed = capsys.readouterr().out
    assert "good: done 20" in printed and "bad: FAILED" in printed and "not yet" in printed
    assert (tmp_path / "good.log").read_text() == "hello\n"

    (tmp_path / "mended").touch()
    assert main([], jobs, tmp_path) == 0
    assert tries(tmp_path) == ["x", "xx"], "only what was not done ran again"
    assert main([], jobs, tmp_path) == 0
    assert tries(tmp_path) == ["x", "xx"]


def test_a_job_that_is_done_runs_again_when_it_is_asked_to(jobs, tmp_path, capsys):
    main(["good"], jobs, tmp_path)
    assert main(["--list"], jobs, tmp_path) == 0
    printed = capsys.readouterr().out
    assert "bad: to do: fails" in printed and " s, commit " in printed
    main(["--again", "good"], jobs, tmp_path)
    assert (tmp_path / "good.tries").read_text() == "xx"
    assert not (tmp_path / "bad.tries").exists()


def test_a_job_that_fails_when_run_again_is_no_longer_done(tmp_path):
    main(["one"], {"one": Job("succeeds", ["-c", ""])}, tmp_path)
    assert main(["--again", "one"], {"one": Job("fails", ["-c", "exit(1)"])}, tmp_path) == 1
    assert not (tmp_path / "one.done").exists()


def test_an_unknown_job_is_refused(jobs, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["goood"], jobs, tmp_path)
    assert "no such job: goood; choose among good, bad" in capsys.readouterr().err


def test_every_job_starts_something_that_is_there(monkeypatch):
    """Without running it: scripts and modules exist, and a command knows the options given."""
    for name, job in JOBS.items():
        first, second = job.command[0], job.command[1:2]
        assert first == "-m" or (ROOT / first).is_file(), name
        if first == "-m":
            code = f"import importlib.util as u; assert u.find_spec({second[0]!r})"
            subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert run.commit() != ""


def test_more_examples_are_new_ones(monkeypatch):
    monkeypatch.delenv("MINIDIST_EXAMPLES", raising=False)
    usual = examples(12)
    assert (usual.max_examples, usual.derandomize) == (12, True)
    monkeypatch.setenv("MINIDIST_EXAMPLES", "50")
    many = examples(12)
    assert (many.max_examples, many.derandomize) == (600, False)
