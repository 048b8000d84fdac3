"""Loading: verify the whole checkpoint, then each rank reads the part it needs.

    1  rank 0 lists the checkpoints, newest first
    2  every rank reads the manifest (manifest.py) and verifies its share of the files (stored.py)
    3  the checkpoint must be of this model, optimizer, dtype, seed and order of batches
    4  only now the method changes: it loads its part of the state, and "auto" uses the same
       algorithms as before (collectives/replay.py), so that sums have the same order

After each step all ranks agree. If a checkpoint is damaged, the one before it is tried, with a
warning. A checkpoint of another model, optimizer, seed or order of batches is refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from minidist.checkpoint.agree import broadcast_text, on_all_ranks
from minidist.checkpoint.files import MANIFEST, NAME, numbered
from minidist.checkpoint.manifest import CheckpointError, Damaged, Manifest, Mismatch
from minidist.checkpoint.stored import LAZY, Stored, read_manifest, verify
from minidist.collectives.replay import replay
from minidist.data.batches import Batches
from minidist.parallel.method import Method
from minidist.parallel.state import check_own, check_state, key


@dataclass(frozen=True)
class Loaded:
    """A loaded checkpoint: ``step`` is the next step to make, ``notes`` the user's saved notes."""

    step: int
    notes: dict[str, Any]
    path: Path
    manifest: Manifest


def load(
    folder: str | Path, method: Method, batches: Batches | None = None, cast: bool = False
) -> Loaded:
    """Load the newest whole checkpoint in ``folder``; or one checkpoint, if ``folder`` is its path.

    Every rank must call it, with a method that was just made. Method and number of ranks may differ
    from those that saved. ``batches``: if given, its order of samples must be the saved one.
    ``cast`` allows another dtype, such as float64 for a checkpoint in float32.

    Raises CheckpointError if there is none; Damaged if none is whole, with the reasons; Mismatch if
    it is of another model, optimizer, seed or order of batches. Then the method is unchanged.
    """
    folder, comm = Path(folder), method.comm
    one = bool(NAME.fullmatch(folder.name)) or (folder / MANIFEST).exists()
    found = "\n".join([folder.name] if one else [path.name for _, path in numbered(folder)])
    names = broadcast_text(comm, found).splitlines()
    parent = folder.parent if broadcast_text(comm, "one" if one else "") else folder
    if not names:
        raise CheckpointError(f"there is no checkpoint in {folder}")
    damaged = []
    for name in names:
        try:
            manifest = on_all_ranks(comm, partial(verified, parent / name, method))
        except Damaged as error:
            damaged.append(str(error))
            continue
        if damaged and comm.rank == 0:
            passed = "; ".join(damaged)
            warnings.warn(f"loading {name}, because: {passed}", stacklevel=2)
        stored = Stored(parent / name, manifest)
        on_all_ranks(comm, partial(check_matches, stored, method, batches, cast))
        replay(comm, list(manifest.algorithms))
        on_all_ranks(comm, partial(method.load, stored))  # type: ignore[arg-type]
        return Loaded(manifest.step, manifest.notes, parent / name, manifest)
    raise Damaged(f"no checkpoint in {folder} can be loaded: {'; '.join(damaged)}")


def verified(path: Path, method: Method) -> Manifest:
    """The manifest of a checkpoint, after verifying this rank's share of its files."""
    manifest = read_manifest(path)
    comm = method.comm
    verify(path, manifest, range(comm.rank, len(manifest.files), comm.size))
    return manifest


def check_matches(
    stored: Stored, method: Method, batches: Batches | None = None, cast: bool = False
) -> None:
    """Raise Mismatch unless the method can continue from this checkpoint."""
    manifest = stored.manifest
    where = stored.folder.name
    for what, saved, here in (
        ("optimizer", manifest.optimizer, type(method.optimizer).__name__),
        ("seed", manifest.seed, method.seed),
    ):
        if saved != here:
            raise Mismatch(
                f"{where} was saved with the {what} {saved}, and this method has {here}: make it "
                f"with that {what}, or load only the parameters: export_parameters() and "
                "import_parameters()"
            )
    if batches is not None and manifest.batches is not None:
        now, then = identity(batches), manifest.batches
        if different := sorted(name for name in now if now[name] != then.get(name)):
            listed = ", ".join(f"{n} {then.get(n)!r} and now {now[n]!r}" for n in different)
            raise Mismatch(f"{where}: the order of samples would be different: {listed}")
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
            raise Damaged(f"{where} lacks {own}, which this rank needs to continue")


def identity(batches: Batches) -> Mapping[str, Any]:
    """The settings that determine batches[step]."""
    return {
        "dataset": batches.dataset.name,
        "samples": len(batches.dataset),
        "size": int(batches.size),
        "seed": int(batches.seed),
    }
