"""One rank's part in writing a checkpoint: its file, a note about the file, and the manifest.

checkpoints.py has the order of these over all ranks.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save as to_bytes

from minidist.checkpoint import files
from minidist.checkpoint.loading import identity
from minidist.checkpoint.manifest import (
    CheckpointError,
    Entry,
    Manifest,
    Piece,
    StoredFile,
    file_name,
)
from minidist.data.batches import Batches
from minidist.engine import array as arrays
from minidist.parallel.method import Method
from minidist.parallel.shares import Share

SEEN_AFTER = 10.0  # seconds in which a shared file system must show a new folder on all ranks


class Writing:
    """One rank's part of a checkpoint that is being written, in a thread or not."""

    def __init__(
        self,
        temporary: Path,
        rank: int,
        ranks: int,
        shares: list[Share],
        chosen: list[dict[str, Any]],
        explained: Callable[[Callable[[], Any]], Callable[[], Any]],
    ) -> None:
        self.temporary, self.rank, self.ranks, self.shares = temporary, rank, ranks, shares
        self.chosen = chosen  # algorithms that "auto" chose on this rank
        self.explained = explained
        self.commit: Callable[[], None] | None = None  # on rank 0
        self.error: Exception | None = None  # of this rank's file
        self.commit_error: Exception | None = None
        self.done, self.given_up = threading.Event(), threading.Event()
        self.thread: threading.Thread | None = None

    def start(self) -> None:
        # A daemon, so that a process that ends with an error does not wait for other ranks' files.
        self.thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self.write()
        if self.commit is not None and self.error is None and self._all_notes():
            self._commit()

    def write(self) -> None:
        try:
            self.explained(
                lambda: write_shares(
                    self.temporary, self.rank, self.ranks, self.shares, self.chosen
                )
            )()
        except Exception as error:
            self.error = error
        self.shares = []
        self.done.set()

    def _all_notes(self, seconds: float = np.inf) -> bool:
        """Wait for every rank's note; False if a rank has failed, or after ``seconds``."""
        wanted = {note_name(rank) for rank in range(self.ranks)}
        end = time.monotonic() + seconds
        while not self.given_up.is_set() and time.monotonic() < end:
            wanted = {name for name in wanted if not (self.temporary / name).exists()}
            if not wanted:
                return True
            self.given_up.wait(0.01)
        return False

    def _commit(self) -> None:
        assert self.commit is not None
        try:
            self.explained(self.commit)()
        except Exception as error:
            self.commit_error = error

    def written(self) -> None:
        self.done.wait()
        if self.error is not None:
            raise self.error

    def committed(self) -> None:
        if self.thread is not None:
            self.thread.join()
        elif self.commit is not None:
            self._all_notes(SEEN_AFTER)  # a network file system may show the notes later
            self._commit()
        if self.commit_error is not None:
            self.cancel()
            raise self.commit_error

    def cancel(self) -> None:
        """Remove the written files, because a rank has failed."""
        self.leave()
        if self.rank == 0:
            files.remove(self.temporary)

    def leave(self) -> None:
        """End the thread; if all ranks have written, the checkpoint is still completed."""
        self.done.wait()
        if self.thread is not None:
            self.thread.join(timeout=1.0)
            self.given_up.set()
            self.thread.join()


def host_copy(share: Share, copied: bool) -> Share:
    """The share on the host; ``copied`` into new memory, if training continues meanwhile."""
    data = arrays.to_host(share.data)
    data = np.array(data) if copied else np.ascontiguousarray(data)
    return Share(share.name, share.shape, share.box, share.span, data)


def write_shares(
    temporary: Path,
    rank: int,
    ranks: int,
    shares: list[Share],
    chosen: list[dict[str, Any]],
) -> None:
    """Write this rank's file, and the note that describes it."""
    values, listed, seen = dict[str, np.ndarray](), [], Counter[str]()
    for share in shares:
        if not share.data.size:
            continue
        key = share.name + (f"#{seen[share.name]}" if seen[share.name] else "")
        seen[share.name] += 1
        piece = Piece(rank, key, share.box, share.span)
        values[key] = share.data.reshape(piece.stored_shape)
        listed.append([share.name, share.shape, share.data.dtype.name, asdict(piece)])
    name, data = file_name(rank, ranks), to_bytes(values)
    files.write_file(temporary / name, data)
    file = asdict(StoredFile(name, len(data), hashlib.sha256(data).hexdigest()))
    path = temporary / note_name(rank)
    note = json.dumps({"file": file, "shares": listed, "algorithms": chosen})
    files.write_file(path.with_suffix(".new"), note.encode())
    path.with_suffix(".new").rename(path)


def note_name(rank: int) -> str:
    return f"note-{rank:05}.json"


def make_manifest(
    temporary: Path,
    ranks: int,
    step: int,
    notes: dict[str, Any],
    method: Method,
    batches: Batches | None,
) -> Manifest:
    """The manifest, from the notes of all ranks."""
    stored, found, chosen = [], dict[str, Entry](), dict[str, dict[str, Any]]()
    for rank in range(ranks):
        note = json.loads((temporary / note_name(rank)).read_bytes())
        stored.append(StoredFile(**note["file"]))
        chosen |= {str(one): one for one in note["algorithms"]}  # once, if ranks chose together
        for name, shape, dtype, raw in note["shares"]:
            box, span = tuple((a, b) for a, b in raw["box"]), (raw["span"][0], raw["span"][1])
            piece = Piece(rank, raw["key"], box, span)
            before = found[name].pieces if name in found else ()
            found[name] = Entry(tuple(shape), dtype, (*before, piece))
    return Manifest(
        step=step,
        seed=int(method.seed),
        method=type(method).__name__,
        optimizer=type(method.optimizer).__name__,
        ranks=ranks,
        batches=None if batches is None else dict(identity(batches)),
        notes=notes,
        files=tuple(stored),
        arrays=found,
        algorithms=tuple(chosen.values()),
    )


def wait_until_seen(temporary: Path, folder: Path) -> None:
    """Wait until this rank sees the folder that rank 0 has made; else raise CheckpointError."""
    end = time.monotonic() + SEEN_AFTER
    while not temporary.is_dir():
        if time.monotonic() > end:
            raise CheckpointError(
                f"this rank does not see {temporary.name}, which rank 0 has made in {folder}: all "
                "ranks must write to one folder, in a file system that their machines share"
            )
        time.sleep(0.05)
