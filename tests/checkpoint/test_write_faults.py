"""Where a checkpoint cannot be written: said in words, on every rank, and the one before stays."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minidist import checkpoint
from minidist.checkpoint import CheckpointError, Checkpoints, checkpoints, files, writing
from minidist.checkpoint.files import numbered, remove_old
from minidist.checkpoint.loading import load
from minidist.models import mlp
from tests.checkpoint.runs import batches_of, method_of, on_ranks, run


def expect_error(folder, reason, ranks=2, key="zero/1"):
    """Before the first step, on every rank."""

    def body(comm):
        with pytest.raises(CheckpointError, match=reason):
            Checkpoints(folder, method_of(key, comm))

    on_ranks(ranks, body)


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "taken").write_text("mine")
    expect_error(tmp_path / "taken", r"rank 0: checkpoints need a folder, and .*taken is a file")
    expect_error(tmp_path / "taken" / "below", "taken is a file")
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no folder that root cannot write")
def test_a_folder_that_cannot_be_written():
    expect_error(Path("/proc/checkpoints"), r"checkpoints cannot be written to /proc/checkpoints")


def test_no_room_for_one_checkpoint_is_said_before_training(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    expect_error(tmp_path, "has 0.0 MB free")


@pytest.mark.parametrize("overlapped", [False, True])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_disk_that_is_full_on_one_rank_loses_nothing(tmp_path, monkeypatch, rank, overlapped):
    """All ranks raise, the checkpoint before is whole, and with room again saving goes on."""
    original, full = files.write_file, [False]

    def write(path, data):
        if full[0] and f"rank-{rank:05}" in path.name:
            path.write_bytes(data[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        original(path, data)

    monkeypatch.setattr(checkpoints.files, "write_file", write)

    def body(comm):
        method, batches = method_of("zero/1", comm), batches_of()
        saves = Checkpoints(tmp_path, method, batches, keep=1, overlapped=overlapped)
        method.step(batches[0])
        saves.save(1)
        saves.wait()
        state = method.state()
        method.step(batches[1])
        comm.barrier()
        full[0] = True
        with pytest.raises(CheckpointError, match=f"rank {rank}: .*disk is full: free some"):
            saves.save(2)
            saves.wait()
        comm.barrier()
        names = [path.name for path in tmp_path.iterdir()]
        comm.barrier()
        full[0] = False
        fresh = method_of("zero/1", comm)
        assert load(tmp_path, fresh).step == 1
        after = fresh.state()
        assert all(np.array_equal(after[name], values) for name, values in state.items())
        saves.save(2)
        saves.wait()
        return names

    for names in on_ranks(2, body):
        assert names == ["save-000001-step-00000001"]
    assert [path.name for _, path in numbered(tmp_path)] == ["save-000002-step-00000002"]


@pytest.mark.skipif(shutil.which("unshare") is None, reason="no private mounts")
def test_a_disk_that_is_really_full(tmp_path):
    """A file system of 64 KB, on which the second checkpoint has no room."""
    disk = tmp_path / "disk"
    disk.mkdir()
    program = f"""
from pathlib import Path
from minidist import LocalWorld, launch
from minidist.checkpoint import CheckpointError, Checkpoints
from tests.checkpoint.runs import method_of
from tests.parallel.checks import Setting
def body(comm):
    saves = Checkpoints("{disk}", method_of("serial", comm, Setting(widths=(12, 200, 5))), keep=2)
    saves.save(0)
    try:
        saves.save(1)
    except CheckpointError as error:
        print(error, [path.name for path in Path("{disk}").iterdir()])
launch(body, 1, LocalWorld())
"""
    script = tmp_path / "fill.py"
    script.write_text(program)
    command = f"mount -t tmpfs -o size=64k none {disk} && {sys.executable} {script}"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", command],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode and "mount" in done.stderr + done.stdout:
        pytest.skip(f"no private mounts: {done.stderr}")
    assert done.returncode == 0, done.stderr
    assert "No space left on device" in done.stdout
    assert "the disk is full" in done.stdout
    assert "['save-000001-step-00000000']" in done.stdout


def test_what_a_kill_left_is_never_loaded_and_is_removed(tmp_path):
    run("zero/1", 2, tmp_path, stop=2)
    left = tmp_path / ".writing-000002-0badcafe"
    shutil.copytree(numbered(tmp_path)[0][1], left)
    start, *_ = run("zero/1", 2, tmp_path, stop=2)
    assert start == 2
    assert not left.exists()


def test_old_ones_are_removed_only_below_the_last_whole_ones(tmp_path):
    for number in range(1, 6):
        path = tmp_path / files.final_name(number, number)
        path.mkdir()
        if number != 4:
            (path / "manifest.json").write_text("{}")
    remove_old(tmp_path, keep=2)
    assert [number for number, _ in numbered(tmp_path)] == [5, 4, 3]


@pytest.mark.parametrize("fails", ["manifest", "rename", "publish"])
def test_whatever_fails_at_the_end_the_one_before_stays(tmp_path, monkeypatch, fails):
    run("zero/1", 2, tmp_path, stop=2, keep=1)

    def broken(*args):
        raise OSError(errno.EIO, "broken")

    write_file = files.write_file

    def no_manifest(path, data):
        return (broken if path.name == "manifest.json" else write_file)(path, data)

    def body(comm):
        saves = Checkpoints(tmp_path, method_of("zero/1", comm), keep=1, overlapped=True)
        comm.barrier()
        if fails == "manifest":
            monkeypatch.setattr(checkpoints.files, "write_file", no_manifest)
        elif fails == "rename":
            monkeypatch.setattr(os, "rename", broken)
        else:
            monkeypatch.setattr(files, "publish", broken)
        saves.save(4)
        with pytest.raises(CheckpointError, match="broken"):
            saves.wait()

    on_ranks(2, body)
    monkeypatch.undo()
    assert [path.name for _, path in numbered(tmp_path)] == ["save-000001-step-00000002"]
    assert on_ranks(2, lambda comm: load(tmp_path, method_of("zero/1", comm)))[0].step == 2


def test_a_folder_that_other_ranks_do_not_see(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "SEEN_AFTER", 0.1)

    def blind(comm):
        saves = Checkpoints(tmp_path, method_of("zero/1", comm))
        saves.folder = tmp_path / f"machine {comm.rank}" if comm.rank else tmp_path
        with pytest.raises(
            CheckpointError, match=r"does not see .*file system that their machines"
        ):
            saves.save(0)

    on_ranks(2, blind)
    assert list(tmp_path.iterdir()) == []


def test_exports_that_cannot_be_written_leave_the_old_file(tmp_path, monkeypatch):
    path, model = tmp_path / "m.safetensors", mlp((4, 3)).init(0)
    checkpoint.export_parameters(path, model)
    before = path.read_bytes()

    def broken(*args):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(CheckpointError, match="cannot be written"):
        checkpoint.export_parameters(path, mlp((4, 3)).init(1))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
