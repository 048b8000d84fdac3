"""Loading: verify everything, then let each rank read what it needs.

    1  rank 0 lists the checkpoints, newest first
    2  every rank reads the manifest (manifest.py) and verifies its share of the files (stored.py)
    3  the checkpoint must be of this model, optimizer, dtype, seed and order of batches
    4  only now anything changes: the method takes its part, for its layout, and "auto" the
       algorithms that it took (collectives/replay.py), so that sums are added in the same order

After each step all ranks agree. A damaged checkpoint is passed over, with a warning, for the one
before it. One of something else is refused: training on from another model is never what is wanted.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from minidist.checkpoint.agree import tell, together
from minidist.checkpoint.files import MANIFEST, NAME, numbered
from minidist.checkpoint.manifest import CheckpointError, Damaged, Manifest, Mismatch
from minidist.checkpoint.stored import LAZY, Stored, read_manifest, verify
from minidist.collectives.replay import replay
from minidist.data.batches import Batches
from minidist.parallel.method import Method
from minidist.parallel.state import check_own, check_state, key


@dataclass(frozen=True)
class Loaded:
    """What was loaded: ``step`` is the next step to make, and ``notes`` what was saved with it."""

    step: int
    notes: dict[str, Any]
    path: Path
    manifest: Manifest


def load(
    folder: str | Path, method: Method, batches: Batches | None = None, cast: bool = False
) -> Loaded:
    """Go on from the newest checkpoint in ``folder`` that is whole; or from this one, by its path.

    Every rank must call it, with a method that was just made; of any number of ranks, and any
    method that can hold the model. With ``batches``, the order of samples must be as it was.
    ``cast`` allows another dtype, such as float32 to go on in float64.

    Raises CheckpointError if there is none; Damaged if none is whole, with the reason for each;
    Mismatch if it is of another model, optimizer, seed or order of batches. The method is then
    unchanged.
    """
    folder, comm = Path(folder), method.comm
    one = bool(NAME.fullmatch(folder.name)) or (folder / MANIFEST).exists()
    found = "\n".join([folder.name] if one else [path.name for _, path in numbered(folder)])
    names = tell(comm, found).splitlines()
    parent = folder.parent if tell(comm, "one" if one else "") else folder
    if not names:
        raise CheckpointError(f"there is no checkpoint in {folder}")
    damaged = []
    for name in names:
        try:
            manifest = together(comm, partial(verified, parent / name, method))
        except Damaged as error:
            damaged.append(str(error))
            continue
        if damaged and comm.rank == 0:
            passed = "; ".join(damaged)
            warnings.warn(f"going on from {name}, since: {passed}", stacklevel=2)
        stored = Stored(parent / name, manifest)
        together(comm, partial(check_matches, stored, method, batches, cast))
        replay(comm, list(manifest.algorithms))
        together(comm, partial(method.load, stored))  # type: ignore[arg-type]
        return Loaded(manifest.step, manifest.notes, parent / name, manifest)
    raise Damaged(f"no checkpoint in {folder} can be loaded: {'; '.join(damaged)}")


def verified(path: Path, method: Method) -> Manifest:
    """The manifest of a checkpoint, of whose files this rank has verified its share."""
    manifest = read_manifest(path)
    comm = method.comm
    verify(path, manifest, range(comm.rank, len(manifest.files), comm.size))
    return manifest


def check_matches(
    stored: Stored, method: Method, batches: Batches | None = None, cast: bool = False
) -> None:
    """Raise Mismatch unless the method can go on from this checkpoint."""
    manifest = stored.manifest
    where = stored.folder.name
    for what, saved, here in (
        ("optimizer", manifest.optimizer, type(method.optimizer).__name__),
        ("seed", manifest.seed, method.seed),
    ):
        if saved != here:
            raise Mismatch(
                f"{where} was saved with the {what} {saved}, and this method has {here}: make it "
                f"with that {what} to go on from there, or take the parameters alone: "
                "export_parameters() and import_parameters()"
            )
    if batches is not None and manifest.batches is not None:
        now, then = identity(batches), manifest.batches
        if different := sorted(name for name in now if now[name] != then.get(name)):
            listed = ", ".join(f"{n} {then.get(n)!r} and now {now[n]!r}" for n in different)
            raise Mismatch(f"{where}: the order of samples would be another: {listed}")
    dtype = np.dtype(f"f{method.itemsize}")
    for name, entry in manifest.arrays.items():
        if name.startswith(LAZY) and not cast and entry.dtype != dtype:
            raise Mismatch(
                f"{where}: {name} is {entry.dtype}, and this method computes in {dtype}: pass "
                "cast=True to convert it"
            )
    for name in ("steps", "method/steps"):
        steps = manifest.arrays.get(name)
        if steps is None or steps.shape != () or steps.dtype != "int64" or int(stored[name]) < 0:
            raise Damaged(f"{where} has no number of {name}")
    try:
        check_state(stored, method.whole, method.optimizer)  # type: ignore[arg-type]
        check_own(method.comm, stored, method.own_arrays())  # type: ignore[arg-type]
    except (KeyError, ValueError) as error:
        raise Mismatch(f"{where}: {error.args[0]}") from error
    alike = manifest.ranks == method.comm.size and manifest.method == type(method).__name__
    for name in method.own_arrays() if alike else ():
        own = key(method.comm.rank, method.comm.size) + name
        if own not in stored:
            raise Damaged(f"{where} lacks {own}, without which this rank cannot go on")


def identity(batches: Batches) -> Mapping[str, Any]:
    """What makes batches[step] the same batch again."""
    return {
        "dataset": batches.dataset.name,
        "samples": len(batches.dataset),
        "size": int(batches.size),
        "seed": int(batches.seed),
    }
