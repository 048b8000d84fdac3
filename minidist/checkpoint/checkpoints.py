"""Writing checkpoints so that a kill at any moment loses nothing that was saved.

    every rank    takes its share of the state (parallel/shares.py); copies it if overlapped
                  writes its file in a temporary folder, with SHA-256, and fsyncs it
                  and then a note of what is in it
    rank 0        when all notes are there: writes the manifest, fsyncs file and folder,
                  renames the folder, fsyncs its parent: from now on it is a checkpoint
                  then removes all but the last K

A kill before the renaming leaves a temporary folder, which is never loaded, and the checkpoints
before, of which none has been touched. Notes are files and not messages: so with ``overlapped`` all
of it happens in a thread during the next steps, and the checkpoint counts as soon as the slowest
rank has written its file. The next ``save``, or the end, waits for the thread, and raises on all
ranks what went wrong on one. The price of overlap is a copy of the rank's share.

What is tried first, when ``Checkpoints`` is made: that every rank sees what rank 0 writes there,
that it can be written, and that one checkpoint fits on the disk.
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
from types import TracebackType
from typing import Any, Self

import numpy as np
from safetensors.numpy import save as to_bytes

from minidist.checkpoint import files
from minidist.checkpoint.agree import tell, together
from minidist.checkpoint.loading import Loaded, identity, load
from minidist.checkpoint.manifest import (
    CheckpointError,
    Entry,
    Manifest,
    Piece,
    StoredFile,
    file_name,
)
from minidist.comm.choices import recorded
from minidist.data.batches import Batches
from minidist.engine import array as arrays
from minidist.parallel.method import Method
from minidist.parallel.model_costs import parameter_count
from minidist.parallel.shares import Share

SEEN_AFTER = 10.0  # seconds in which a shared file system must show a new folder on all ranks


class Checkpoints:
    """The checkpoints of one run, in ``folder``. Every rank makes one, and makes the same calls.

    ``keep``: how many to keep. ``overlapped``: write during the next steps. ``batches``: the order
    of samples, which must be the same to go on. Leave the ``with`` block, or call ``wait()``, to
    have the last one on the disk.
    """

    def __init__(
        self,
        folder: str | Path,
        method: Method,
        batches: Batches | None = None,
        keep: int = 2,
        overlapped: bool = False,
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep at least one checkpoint, not {keep}")
        self.folder = Path(folder)
        self.method, self.comm, self.batches = method, method.comm, batches
        self.keep, self.overlapped = keep, overlapped
        self._writing: _Writing | None = None
        slots = 1 + len(method.optimizer.slots)
        nbytes = parameter_count(method.whole) * method.itemsize * slots

        def first() -> None:
            if self.comm.rank == 0:
                files.try_folder(self.folder, nbytes)
                files.remove_unfinished(self.folder)

        together(self.comm, first)

    def resume(self) -> int:
        """The next step to make: after the newest whole checkpoint, or 0 if there is none at all.

        Raises what ``load`` does, also if there are checkpoints and all are damaged.
        """
        found = tell(self.comm, "some" if files.numbered(self.folder) else "")
        return self.load().step if found else 0

    def load(self) -> Loaded:
        """``checkpoint.load`` of the newest."""
        return load(self.folder, self.method, self.batches)

    def save(self, step: int | None = None, notes: dict[str, Any] | None = None) -> None:
        """Save after ``step`` steps; by default, those that the method has counted.

        ``notes`` is what you want back: JSON, the same on every rank.

        Returns when the checkpoint is on the disk; with ``overlapped``, when it is copied.
        Raises CheckpointError, on every rank, if it cannot be written; older ones are untouched.
        RankLost, in the local world, if a rank has crashed: it would have to write its share.
        """
        self.wait()
        done = self.method.steps if step is None else step
        shares = self.method.state_shares()
        rank, comm = self.comm.rank, self.comm

        def begin() -> str:
            json.dumps(notes)  # raises here what cannot be saved
            return files.new_temporary(self.folder).name if rank == 0 else ""

        temporary = self.folder / tell(comm, together(comm, self._explained(begin)))
        try:
            together(comm, self._explained(lambda: wait_until_seen(temporary, self.folder)))
            copies = [host_copy(share, self.overlapped) for share in shares]
            chosen = recorded([comm.trace.choices])
            writing = _Writing(temporary, rank, comm.size, copies, chosen, self._explained)
            if rank == 0:
                writing.commit = lambda: self._commit(temporary, done, dict(notes or {}))
            self._writing = writing
            if self.overlapped:
                writing.start()
            else:
                writing.write()
                self.wait()
        except BaseException:
            if rank == 0 and not (self._writing and self._writing.thread):
                files.remove(temporary)
            raise

    def wait(self) -> None:
        """Wait for a checkpoint that is being written. Raises on all ranks what failed on one."""
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            together(self.comm, writing.written)
        except CheckpointError:
            writing.cancel()
            raise
        together(self.comm, writing.committed)

    def _commit(self, temporary: Path, step: int, notes: dict[str, Any]) -> None:
        """Rank 0, when every rank has written: the manifest, the final name, fewer old ones."""
        manifest = make_manifest(temporary, self.comm.size, step, notes, self.method, self.batches)
        files.write_file(temporary / files.MANIFEST, manifest.text().encode())
        for rank in range(self.comm.size):
            (temporary / note_name(rank)).unlink()
        files.publish(temporary, step)
        files.remove_old(self.folder, self.keep)

    def _explained(self, work: Callable[[], Any]) -> Callable[[], Any]:
        """``work`` with errors of the system in words."""

        def explained() -> Any:
            try:
                return work()
            except OSError as error:
                raise CheckpointError(files.explain(error, self.folder)) from error

        return explained

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.wait()
        elif self._writing is not None:  # another rank may have failed: no messages any more
            self._writing.leave()


def save(
    folder: str | Path,
    method: Method,
    step: int | None = None,
    batches: Batches | None = None,
    keep: int = 2,
    notes: dict[str, Any] | None = None,
) -> None:
    """Write one checkpoint, and return when it is on the disk.

    Every rank must call it. See ``Checkpoints.save``.
    """
    Checkpoints(folder, method, batches, keep).save(step, notes)


# What one rank does


class _Writing:
    """One rank's part of a checkpoint on its way to the disk, in a thread or not."""

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
        self.chosen = chosen  # by "auto", on this rank
        self.explained = explained
        self.commit: Callable[[], None] | None = None  # on rank 0
        self.error: Exception | None = None  # of this rank's file
        self.commit_error: Exception | None = None
        self.done, self.given_up = threading.Event(), threading.Event()
        self.thread: threading.Thread | None = None

    def start(self) -> None:
        # As a daemon: a process that ends by an error must not wait for other ranks' files.
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
        """Wait for every rank's note; False if one has failed, or so long after."""
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
            self._all_notes(SEEN_AFTER)  # written: a network file system may show them later
            self._commit()
        if self.commit_error is not None:
            self.cancel()
            raise self.commit_error

    def cancel(self) -> None:
        """A rank has failed: what was written is removed."""
        self.leave()
        if self.rank == 0:
            files.remove(self.temporary)

    def leave(self) -> None:
        """End the thread; a checkpoint that all have written is still completed."""
        self.done.wait()
        if self.thread is not None:
            self.thread.join(timeout=1.0)
            self.given_up.set()
            self.thread.join()


def host_copy(share: Share, copied: bool) -> Share:
    """The share on the host; in memory of its own, if training is to go on meanwhile."""
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
    """This rank's file, and the note that says what is in it."""
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
    """From the notes of all ranks."""
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
    """Raise CheckpointError if this rank does not see the folder that rank 0 has made."""
    end = time.monotonic() + SEEN_AFTER
    while not temporary.is_dir():
        if time.monotonic() > end:
            raise CheckpointError(
                f"this rank does not see {temporary.name}, which rank 0 has made in {folder}: all "
                "ranks must write to one folder of a file system that their machines share"
            )
        time.sleep(0.05)
