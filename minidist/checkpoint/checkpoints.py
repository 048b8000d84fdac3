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

import json
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from minidist.checkpoint import files
from minidist.checkpoint.agree import tell, together
from minidist.checkpoint.loading import Loaded, load
from minidist.checkpoint.manifest import CheckpointError
from minidist.checkpoint.writing import (
    Writing,
    host_copy,
    make_manifest,
    note_name,
    wait_until_seen,
)
from minidist.comm.choices import recorded
from minidist.data.batches import Batches
from minidist.parallel.method import Method
from minidist.parallel.model_costs import parameter_count


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
        self._writing: Writing | None = None
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
            writing = Writing(temporary, rank, comm.size, copies, chosen, self._explained)
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
