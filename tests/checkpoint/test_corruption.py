"""Damaged checkpoints are refused with a reason; none crashes, none runs anything."""

from __future__ import annotations

import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from minidist.checkpoint import CheckpointError, Damaged, Mismatch
from minidist.checkpoint.loading import load
from tests.checkpoint.corruptions import (
    CORRUPTIONS,
    absurd_header,
    edit,
    pieces_that_do_not_fit,
    refit,
    shards,
    wrong_number,
)
from tests.checkpoint.runs import method_of, on_ranks, run
from tests.examples import examples


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A folder with one checkpoint, of ZeRO on 3 ranks."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    run("zero/1", 3, folder, stop=2)
    return folder


def loaded(key: str, ranks: int, folder: Path):
    """The state after loading, or the error; the method must be unchanged by an error."""

    def body(comm):
        method = method_of(key, comm)
        before = method.state()
        try:
            load(folder, method)
        except CheckpointError as error:
            after = method.state()
            assert all(np.array_equal(after[name], before[name]) for name in before)
            assert after.keys() == before.keys()
            return error
        return method.state()

    return on_ranks(ranks, body)


def check(saved: Path, folder: Path, corrupt, fitted: bool, seed: int, to=("serial", 1)) -> bool:
    """Corrupt a copy and load it; whether it was refused."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(saved, folder)
    (checkpoint,) = folder.iterdir()
    knowable = corrupt(checkpoint, random.Random(seed))
    if fitted:
        refit(checkpoint)
    results = loaded(*to, folder)
    assert not (folder / "executed").exists(), f"{corrupt.__name__} {seed}: code was run"
    errors = [result for result in results if isinstance(result, CheckpointError)]
    assert len(errors) in (0, len(results)), "some ranks go on and others do not"
    if not errors:
        assert fitted and not knowable, f"{corrupt.__name__}, seed {seed}: loaded"
    for error in errors:
        assert len(str(error)) > 20
        assert len(str(error)) < 2000, f"{corrupt.__name__}: {str(error)[:3000]}"
    return bool(errors)


@examples(80)
@given(
    corrupt=st.sampled_from(CORRUPTIONS),
    fitted=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_a_corrupted_checkpoint_is_refused_or_nothing_wrong_can_be_known(
    saved, tmp_path_factory, corrupt, fitted, seed
):
    check(saved, tmp_path_factory.getbasetemp() / "corrupted", corrupt, fitted, seed)


@pytest.mark.parametrize("corrupt", CORRUPTIONS, ids=lambda corrupt: corrupt.__name__)
def test_every_rank_refuses_what_one_rank_finds(saved, tmp_path, corrupt):
    assert check(saved, tmp_path / "c", corrupt, False, 1, ("zero/3", 2))


def test_an_array_that_no_manifest_names_is_refused(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "c")
    (checkpoint,) = (tmp_path / "c").iterdir()
    path = shards(checkpoint)[0]
    arrays = load_file(path)
    save_file(arrays | {"more": np.zeros(3)}, path)
    refit(checkpoint)
    for error in loaded("serial", 1, tmp_path / "c"):
        assert "differ in the arrays ['more']" in str(error)


@pytest.mark.parametrize("corrupt", [absurd_header, pieces_that_do_not_fit, wrong_number])
def test_what_hashes_cannot_find_is_found(saved, tmp_path, corrupt):
    for seed in range(12):
        assert check(saved, tmp_path / "c", corrupt, True, seed)


def test_what_a_rank_kept_for_itself_may_not_be_missing(tmp_path):
    """Compression goes wrong slowly without its errors: a checkpoint that lacks them is refused."""
    run("compression/top_k", 2, tmp_path / "c", stop=2)
    (checkpoint,) = (tmp_path / "c").iterdir()
    name, path = "rank 1 of 2/compressor/0", shards(checkpoint)[1]
    arrays = load_file(path)
    del arrays[name]
    save_file(arrays, path)
    edit(checkpoint, lambda body: body["arrays"].pop(name))
    refit(checkpoint)
    for error in loaded("compression/top_k", 2, tmp_path / "c"):
        assert f"rank 1: {checkpoint.name} lacks {name}" in str(error)


def test_what_a_rank_kept_for_itself_must_have_its_shape(tmp_path):
    """One element would be broadcast to all."""
    run("compression/top_k", 2, tmp_path / "c", stop=2)
    (checkpoint,) = (tmp_path / "c").iterdir()
    name, path = "rank 1 of 2/compressor/0", shards(checkpoint)[1]
    save_file(load_file(path) | {name: np.zeros(1)}, path)

    def shorten(body):
        entry = body["arrays"][name]
        entry["shape"], entry["pieces"][0]["box"], entry["pieces"][0]["span"] = (
            [1],
            [[0, 1]],
            [0, 1],
        )

    edit(checkpoint, shorten)
    refit(checkpoint)
    for error in loaded("compression/top_k", 2, tmp_path / "c"):
        assert isinstance(error, Mismatch)
        assert f"{name} is (1,) in the state, and this rank keeps (302,)" in str(error)


def test_a_manifest_that_was_changed_is_refused(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "c")
    (manifest,) = (tmp_path / "c").glob("*/manifest.json")
    manifest.write_text(manifest.read_text().replace('"step": 2', '"step": 3', 1))
    for error in loaded("serial", 1, tmp_path / "c"):
        assert "manifest.json was changed" in str(error)


def test_a_file_cut_off_is_said_by_its_length(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "c")
    file = next((tmp_path / "c").glob("*/rank-00001*"))
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(
        Damaged, match=f"rank-00001.* has {size - 5} bytes, and {size} were written"
    ):
        run("zero/1", 3, tmp_path / "c", stop=3)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path):
    _, losses, expected = run("zero/1", 2, tmp_path / "whole", stop=5)
    run("zero/1", 2, tmp_path / "c", stop=4)
    newest = max((tmp_path / "c").iterdir())
    (newest / "manifest.json").unlink()
    with pytest.warns(UserWarning, match=r"loading save-000001-step-00000002"):
        start, again, got = run("zero/1", 2, tmp_path / "c", stop=5)
    assert (start, again) == (2, losses[2:])
    assert all(np.array_equal(got[name], values) for name, values in expected.items())


def test_if_all_are_damaged_training_does_not_begin_again_silently(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "c")
    for manifest in (tmp_path / "c").glob("*/manifest.json"):
        manifest.write_text("{}")
    with pytest.raises(Damaged, match=r"no checkpoint in .* can be loaded"):
        run("zero/2", 3, tmp_path / "c", stop=3)


def test_no_module_of_the_package_can_unpickle():
    folder = Path(sys.modules["minidist.checkpoint"].__file__).parent
    assert len(list(folder.glob("*.py"))) > 5
    for path in folder.glob("*.py"):
        for word in ("pickle", "np.load", "eval(", "exec("):
            assert word not in path.read_text(), path
