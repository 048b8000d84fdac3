"""Times of tokens by a clock that the test moves, and the command that continues prompts."""

from __future__ import annotations

import io
import math
from functools import partial

import numpy as np
import pytest
from safetensors.numpy import save_file

from minidist import LocalWorld, Machine, cli, launch
from minidist.compress import FileError, keep_largest, quantize_weights, save, shrink
from minidist.data import shakespeare
from minidist.engine.array import defaults
from minidist.inference import Engine, Request, load_gpt, run, run_on
from minidist.models import gpt, mlp, sample
from tests.compress.test_pruning import shifted
from tests.inference.checks import CONTEXT, model


class Clock:
    """Each step of the engine takes a second; sleeping takes what it says."""

    def __init__(self, engine):
        self.now = 0.0
        step = engine.step

        def slow():
            events = step()
            self.now += 1
            return events

        engine.step = slow

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def test_times_are_counted_from_each_arrival():
    engine = Engine(model(), at_once=1)
    clock = Clock(engine)
    asked = [Request((1,), 2), Request((2, 3), 3), Request((), 1), Request((4,), 1)]
    told = []
    timing = run(engine, asked, [0, 0.5, 0.5, 20], lambda i, e: told.append(i), clock, clock.sleep)
    assert timing.times == {0: [1, 2], 1: [2.5, 3.5, 4.5], 3: [1]}
    assert told == [0, 0, 1, 1, 1, 3]
    assert list(timing.refused) == [2] and "empty" in timing.refused[2]
    assert timing.seconds == 21 and timing.tokens == 6 and timing.tokens_a_second == 6 / 21
    assert timing.first_token() == 1 and timing.first_token(100) == 2.5
    assert timing.each_token() == timing.each_token(99) == 1


def test_times_on_ranks_are_counted_from_each_arrival_by_their_clock():
    """On shapes: what a step takes is known, and sleeping takes no work."""
    machine = Machine(launch=1.0, memory_bandwidth=math.inf, flops=1e30, latency=0, bandwidth=1e30,
                      reduce_bandwidth=1e30)  # fmt: skip
    asked = [Request((1,), 2), Request((2, 3), 3), Request((), 1), Request((4,), 1)]
    arrivals = [0, 0.5, 0.5, 1e6]

    def main(comm, mesh):
        with defaults(device="phantom"):
            small = gpt(11, CONTEXT, 12, 2, 4).init(0)
            timing = run_on(comm, small, asked, arrivals, at_once=1, mesh=mesh)
            return timing, comm.trace.busy

    for mesh in ({"tp": 1}, {"pp": 2}, {"dp": 2}):
        (timing, busy), *_ = launch(
            partial(main, mesh=mesh), math.prod(mesh.values()), LocalWorld(machine)
        )
        assert [len(times) for times in timing.times.values()] == [2, 3, 1]
        assert list(timing.refused) == [2] and "empty" in timing.refused[2]
        (first,), late = timing.times[3], timing.seconds - 1e6
        assert first == pytest.approx(late) and 0 < first < 500, "no other request was in its way"
        each = timing.each_token()
        assert each < 200 and timing.times[0][1] == pytest.approx(timing.times[0][0] + each, 0.5)
        assert busy < 1e4, "the ranks slept until the last one came"


def test_arrivals_that_do_not_fit_are_refused():
    for arrivals in ([0], [1, 0]):
        with pytest.raises(ValueError, match="in order"):
            run(Engine(model()), [Request((1,), 1)] * 2, arrivals)
    for wrong in (math.nan, math.inf, -1.0):  # one that never comes would be waited for for ever
        with pytest.raises(ValueError, match=f"at least 0, not {wrong}"):
            run(Engine(model()), [Request((1,), 1)], [wrong])


def test_a_gpt_is_loaded_whatever_was_done_to_it(tmp_path):
    whole = shifted(gpt(11, 8, 12, 3, 4).init(0))
    tokens = np.arange(8)[None] % 11
    for small in (whole, quantize_weights(shrink(whole, keep_largest(whole, 0.5)), 4, 6)):
        again = load_gpt(save(tmp_path / "m", small))
        assert again(tokens).data.tobytes() == small(tokens).data.tobytes()
    with pytest.raises(FileError, match="has no GPT"):
        load_gpt(save(tmp_path / "m", mlp((3, 2)).init(0)))
    ones, flat, number = np.ones((3, 2)), np.ones(3), np.array(3.0)
    for arrays, words in (
        ({"embedding.weight": flat, "0.position": flat}, "other names or shapes"),
        ({"embedding.weight": ones, "0.position": number}, "other names or shapes"),
        ({"": flat, "embedding.weight": ones, "0.position": ones}, "compress.* metadata"),
    ):
        save_file(arrays, tmp_path / "n")
        with pytest.raises(FileError, match=words):
            load_gpt(tmp_path / "n")
    for said in ("{", "[]", '{"packed": {"b": [3]}}', '{"packed": []}'):
        save_file({"a": flat}, tmp_path / "n", {"minidist.compress": said})
        with pytest.raises(FileError, match="is damaged"):
            load_gpt(tmp_path / "n")


def test_the_command_continues_prompts_from_a_file_and_from_the_terminal(
    tmp_path, capsys, monkeypatch
):
    path = save(tmp_path / "m", shifted(gpt(63, 32, 8, 1, 2).init(0)))
    (tmp_path / "prompts").write_text("HAMLET:\n\nTo be\n" + "x" * 40 + "\n")
    arguments = ["generate", "--model", str(path), "--count", "9"]
    assert cli.main([*arguments, "--prompts", str(tmp_path / "prompts"), "--seed", "5"]) == 1
    out, error = capsys.readouterr()
    assert "prompt 2 is refused: the prompt is empty" in error
    assert "prompt 4 is refused: a prompt of 40 tokens does not fit into a context of 32" in error
    text = shakespeare()[0]
    for number, prompt in ((0, "HAMLET:"), (2, "To be")):
        drawn = sample(load_gpt(path), text.encode(prompt), 9, 0.8, 20, seed=5 + number)
        assert f"─\n{prompt}{text.decode(drawn)}\n" in out
    assert "18 tokens in " in out
    monkeypatch.setattr("sys.stdin", io.StringIO("To be\n"))
    assert cli.main([*arguments, "--temperature", "0"]) == 0
    drawn = sample(load_gpt(path), text.encode("To be"), 9, 0)
    assert capsys.readouterr().out.startswith("To be" + text.decode(drawn) + "\n9 tokens in ")
    for mesh in ("tp=2", "dp=2,pp=2"):
        meshed = [*arguments, "--prompts", str(tmp_path / "prompts"), "--seed", "5"]
        assert cli.main([*meshed, "--mesh", mesh, "--world", "local"]) == 1
        again, _ = capsys.readouterr()
        assert all(line in again for line in out.splitlines() if " tokens in " not in line)
        assert f"{mesh}: " in again and " bytes between ranks" in again
    assert cli.main([*meshed, "--mesh", "pp=7", "--world", "local"]) == 2
    assert "7 stages need as many blocks, and the model has 3" in capsys.readouterr().err
    texts = {
        "empty": b"",
        "binary": bytes(range(256)),
        "mixed": f"\ufeffZürich\r\nTo be\r\n{'x' * 40}".encode(),
    }
    wrong = {"empty": "no prompts in", "binary": "is no text in UTF-8"}
    for name, text_bytes in texts.items():
        (tmp_path / name).write_bytes(text_bytes)
        status = cli.main([*arguments, "--prompts", str(tmp_path / name), "--temperature", "0"])
        out, error = capsys.readouterr()
        if name in wrong:
            assert status == 2 and f"{wrong[name]}" in error and name in error and not out
    assert status == 1, "one prompt is refused, the other one is answered"
    assert "prompt 1 is refused" in error and "does not have 'ü'" in error
    assert "prompt 3 is refused: a prompt of 40 tokens" in error
    assert f"── 2 {'─' * 60}\nTo be{text.decode(drawn)}\n" in out
    small = save(tmp_path / "n", gpt(9, 8, 4, 1, 1).init(0))
    assert cli.main(["generate", "--model", str(small)]) == 2
    assert "has 9 tokens, but Shakespeare's text has 63" in capsys.readouterr().err
    assert cli.main(["generate", "--model", str(tmp_path / "none")]) == 2
