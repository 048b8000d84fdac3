"""Folders and files that survive a kill at any moment, and a power failure.

A file's data is on the disk only after ``fsync`` of the file, and its name only after ``fsync`` of
the folder (POSIX does not define the order: Pillai et al., "All File Systems Are Not Created
Equal", OSDI'14). ``rename`` is atomic. So a checkpoint is written under a temporary name, and
renamed when it is complete.

    folder/.writing-000007-5f3a91c2       being written, or left by a kill: never loaded
    folder/save-000007-step-00000040      complete

Checkpoints are numbered in the order in which they were written. Step numbers are not unique: a run
that continues from step 40, because the checkpoint of step 60 was damaged, writes another one of
step 60.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from minidist.checkpoint.manifest import CheckpointError

MANIFEST = "manifest.json"
NAME = re.compile(r"save-(\d{6,})-step-(\d{8,})")
TEMPORARY = ".writing-"


def final_name(number: int, step: int) -> str:
    return f"save-{number:06}-step-{step:08}"


def numbered(folder: Path) -> list[tuple[int, Path]]:
    """(number, path) of all folders with the name of a checkpoint, newest first."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = [(int(match[1]), folder / match[0]) for n in names if (match := NAME.fullmatch(n))]
    return sorted(found, reverse=True)


def write_file(path: Path, data: bytes) -> None:
    """Write a new file, and return when it is on the disk."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Return when the names in a folder are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # some network file systems have no fsync for folders
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def new_temporary(folder: Path) -> Path:
    """A new temporary folder for the next checkpoint; its name has the checkpoint's number."""
    number = max((number for number, _ in numbered(folder)), default=0) + 1
    path = folder / f"{TEMPORARY}{number:06}-{secrets.token_hex(4)}"
    path.mkdir()
    return path


def number_of(temporary: Path) -> int:
    return int(temporary.name.removeprefix(TEMPORARY).partition("-")[0])


def publish(temporary: Path, step: int) -> Path:
    """Give a complete checkpoint its final name; from then on it can be loaded."""
    sync_folder(temporary)
    path = temporary.parent / final_name(number_of(temporary), step)
    os.rename(temporary, path)
    sync_folder(temporary.parent)
    return path


def remove(path: Path) -> None:
    """Remove a checkpoint: the manifest first, so that a half-removed one is never loaded."""
    with suppress(FileNotFoundError):
        os.unlink(path / MANIFEST)
    shutil.rmtree(path, ignore_errors=True)


def remove_old(folder: Path, keep: int) -> None:
    """Remove all checkpoints older than the newest ``keep`` that have a manifest."""
    whole = [number for number, path in numbered(folder) if (path / MANIFEST).is_file()]
    oldest = whole[:keep][-1] if whole else 0
    for number, path in numbered(folder):
        if number < oldest:
            remove(path)


def remove_unfinished(folder: Path) -> None:
    """Remove temporary folders that kills have left. No other job may write to the folder."""
    for path in folder.glob(f"{TEMPORARY}*"):
        shutil.rmtree(path, ignore_errors=True)


def try_folder(folder: Path, nbytes: int) -> None:
    """Make the folder, write to it as a checkpoint would, and check for ``nbytes`` of free space.

    Raises CheckpointError. It is called before training, so that this error does not come after it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial = new_temporary(folder)
        write_file(trial / "trial", b"trial")
        sync_folder(trial)
        os.rename(trial, moved := trial.with_name(f"{trial.name}-moved"))
        shutil.rmtree(moved)
    except OSError as error:
        raise CheckpointError(explain(error, folder)) from error
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        raise CheckpointError(
            f"a checkpoint takes {nbytes / 1e6:,.1f} MB and {folder} has {free / 1e6:,.1f} MB free"
        )


def explain(error: OSError, folder: Path) -> str:
    """A message for an error of the system, with what to do."""
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            return f"checkpoints need a folder, and {path} is a file: choose another folder"
    advice = {
        errno.ENOSPC: "the disk is full: free some space, or keep fewer checkpoints",
        errno.EDQUOT: "your quota is used up: free some space, or keep fewer checkpoints",
        errno.EROFS: "the file system is read-only: choose another folder",
        errno.EACCES: "you may not write there: choose another folder",
        errno.EPERM: "you may not write there: choose another folder",
        errno.EFBIG: "files there may not be so large: raise the limit, or use more ranks",
    }.get(error.errno or 0, "")
    return f"checkpoints cannot be written to {folder}: {error}" + (f"; {advice}" if advice else "")
