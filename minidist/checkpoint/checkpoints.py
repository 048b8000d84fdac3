"""Writing checkpoints, so that a kill at any moment does not damage a saved one.

    every rank    takes its share of the state (parallel/shares.py), and copies it if overlapped;
                  writes its file into a temporary folder, with SHA-256, and fsyncs it;
                  then writes a note that describes the file
    rank 0        when all notes exist: writes the manifest, fsyncs file and folder,
                  renames the folder, and fsyncs its parent: now it is a checkpoint;
                  then removes all but the last K

A kill before the renaming leaves a temporary folder, which is never loaded; older checkpoints are
unchanged. Notes are files, not messages. So with ``overlapped`` a thread does all this during the
next steps, and the checkpoint is complete when the slowest rank has written its file. The next
``save``, or the end, waits for the thread, and raises on all ranks an error of any rank. The cost
of overlap is a copy of the rank's share.

When ``Checkpoints`` is made, it checks that the folder can be written, and that one checkpoint fits
on the disk. Each ``save`` checks that every rank sees rank 0's folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from minidist.checkpoint import files
from minidist.checkpoint.agree import broadcast_text, on_all_ranks
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

    ``keep``: the number of checkpoints to keep. ``overlapped``: write during the next steps.
    ``batches``: if given, its order of samples is saved, and checked when loading. Leave the
    ``with`` block, or call ``wait()``, to complete the last checkpoint. Raises ValueError for a
    ``keep`` below 1, CheckpointError if the folder cannot be written.
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

        on_all_ranks(self.comm, first)

    def resume(self) -> int:
        """Load the newest whole checkpoint; returns the next step to make, 0 if there is none.

        Raises the errors of ``load``, also if there are checkpoints and all are damaged.
        """
        found = broadcast_text(self.comm, "some" if files.numbered(self.folder) else "")
        return self.load().step if found else 0

    def load(self) -> Loaded:
        """``checkpoint.load`` of the newest whole checkpoint."""
        return load(self.folder, self.method, self.batches)

    def save(self, step: int | None = None, notes: dict[str, Any] | None = None) -> None:
        """Save after ``step`` steps; by default the number that the method has counted.

        ``notes``: your own JSON data, the same on every rank; ``load`` returns it.

        Returns when the checkpoint is on the disk; with ``overlapped``, when it is copied. Raises
        CheckpointError, on every rank, if it cannot be written; older ones are unchanged. In the
        local world it raises RankLost if a rank has crashed, since its share is missing.
        """
        self.wait()
        done = self.method.steps if step is None else step
        shares = self.method.state_shares()
        rank, comm = self.comm.rank, self.comm

        def begin() -> str:
            json.dumps(notes)  # raises an error for notes that are not JSON
            return files.new_temporary(self.folder).name if rank == 0 else ""

        temporary = self.folder / broadcast_text(comm, on_all_ranks(comm, self._explained(begin)))
        try:
            on_all_ranks(comm, self._explained(lambda: wait_until_seen(temporary, self.folder)))
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
        """Wait for a checkpoint that is being written. Raises an error of one rank on all ranks."""
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            on_all_ranks(self.comm, writing.written)
        except CheckpointError:
            writing.cancel()
            raise
        on_all_ranks(self.comm, writing.committed)

    def _commit(self, temporary: Path, step: int, notes: dict[str, Any]) -> None:
        """Complete a checkpoint on rank 0, when every rank has written its file."""
        manifest = make_manifest(temporary, self.comm.size, step, notes, self.method, self.batches)
        files.write_file(temporary / files.MANIFEST, manifest.text().encode())
        for rank in range(self.comm.size):
            (temporary / note_name(rank)).unlink()
        files.publish(temporary, step)
        files.remove_old(self.folder, self.keep)

    def _explained(self, work: Callable[[], Any]) -> Callable[[], Any]:
        """``work``, with OSError turned into a CheckpointError that says what to do."""

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
        elif self._writing is not None:  # send no messages: another rank may have failed
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
