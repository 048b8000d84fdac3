"""The manifest: the description of a checkpoint, and its checks.

    folder/save-000007-step-00000040/
        manifest.json
        rank-00000-of-00002.safetensors      the file of rank 0
        rank-00001-of-00002.safetensors

For every array, by its serial name, it has shape, dtype and *pieces*. A piece is a box of the
array, [start, stop) along each axis; a span of the flattened box; and the file with these elements.
So shards (spans), slices on a mesh (boxes) and shards of slices have one format, which does not
depend on the method that wrote it:

    "optimizer/mean/0.weight": {"shape": [784, 128], "dtype": "float32", "pieces": [
        {"file": 0, "key": "optimizer/mean/0.weight",
         "box": [[0, 784], [0, 128]], "span": [0, 50176]},
        {"file": 1, "key": "optimizer/mean/0.weight",
         "box": [[0, 784], [0, 128]], "span": [50176, 100352]}]}

``key`` is the piece's name in its file: the array's name, with "#1", "#2" for the second and third
piece of the array in one file.

For every file it has the length and SHA-256. The manifest's own SHA-256 is its last entry.

A manifest is not trusted. ``parse`` checks every type and bound; that files are named as above (so
all are in the folder); that no piece is longer than its file (so a wrong size cannot cause a large
allocation); and that the pieces of each array cover it without holes and overlaps. JSON and
safetensors contain no code.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from minidist.collectives.replay import check as check_records
from minidist.parallel.shares import Box, size_of

FORMAT = "minidist checkpoint 1"
LONGEST = 512 << 20  # bytes of a manifest: a million pieces are about 250 MB
MOST_BOXES = 1 << 13  # of one array: they are compared in pairs
DTYPES = {  # as safetensors names them
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    "BOOL": "bool",
}
ITEMSIZES = {name: np.dtype(name).itemsize for name in DTYPES.values()}


class CheckpointError(ValueError):
    """A checkpoint could not be written or read; the message gives the reason."""


class Damaged(CheckpointError):
    """The files are not as written: truncated, changed, missing, or of another program."""


class Mismatch(CheckpointError):
    """A whole checkpoint, but of another model, optimizer, seed or order of batches."""


@dataclass(frozen=True)
class Piece:
    """Part of an array: the elements ``span`` of the flattened ``box``, in file number ``file``."""

    file: int
    key: str
    box: Box
    span: tuple[int, int]

    @property
    def length(self) -> int:
        return self.span[1] - self.span[0]

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The box's shape, if the piece is the whole box; else 1-D."""
        sides = tuple(stop - start for start, stop in self.box)
        return sides if self.length == size_of(sides) else (self.length,)


@dataclass(frozen=True)
class Entry:
    """An array: its whole shape, its dtype and its pieces."""

    shape: tuple[int, ...]
    dtype: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class StoredFile:
    """A file of the checkpoint, by its name in the folder."""

    name: str
    nbytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The whole manifest. ``step``: the number of steps made, so the next step to make."""

    step: int
    seed: int
    method: str
    optimizer: str
    ranks: int
    batches: dict[str, Any] | None
    notes: dict[str, Any]
    files: tuple[StoredFile, ...]
    arrays: dict[str, Entry]
    algorithms: tuple[dict[str, Any], ...] = ()  # that "auto" chose: see comm/choices.py

    def text(self) -> str:
        """The content of ``manifest.json``."""
        body = {"format": FORMAT} | asdict(self)
        return json.dumps(body | {"sha256": digest(body)}, indent=1, allow_nan=False)


def digest(body: dict[str, Any]) -> str:
    """SHA-256 of a manifest without its entry "sha256"."""
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def file_name(rank: int, ranks: int) -> str:
    return f"rank-{rank:05}-of-{ranks:05}.safetensors"


def parse(text: bytes) -> Manifest:
    """Read and check a manifest. Raises Damaged, with the entry and its error."""
    if len(text) > LONGEST:
        raise Damaged(f"manifest.json has {len(text)} bytes, more than {LONGEST}")
    try:
        body = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise Damaged(f"manifest.json cannot be read: {error}") from None
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise Damaged(f'manifest.json is not of the format "{FORMAT}"')
    said = body.pop("sha256", None)
    if said != (found := digest(body)):
        raise Damaged(f"manifest.json was changed: its SHA-256 is {found}, and it says {said}")
    expected = {"format", *Manifest.__dataclass_fields__}
    body.setdefault("algorithms", [])  # older manifests have no such entry
    if body.keys() != expected:
        raise Damaged(f"manifest.json: entries differ in {sorted(body.keys() ^ expected)}")
    ranks = whole_number(body["ranks"], "ranks", 1)
    files = tuple(_file(raw, rank, ranks) for rank, raw in enumerate(_list(body["files"], "files")))
    if len(files) != ranks:
        raise Damaged(f"manifest.json: {len(files)} files of {ranks} ranks")
    arrays = {n: _entry(n, raw, files) for n, raw in _dict(body["arrays"], "arrays").items()}
    for name in ("method", "optimizer"):
        if not isinstance(body[name], str):
            raise Damaged(f"manifest.json: {name} is no text: {short(body[name])}")
    batches = body["batches"]
    algorithms = _list(body["algorithms"], "algorithms")
    try:
        check_records(algorithms)
    except ValueError as error:
        raise Damaged(f"manifest.json: algorithms: {error}") from None
    return Manifest(
        step=whole_number(body["step"], "step"),
        seed=whole_number(body["seed"], "seed", -(1 << 63)),
        method=body["method"],
        optimizer=body["optimizer"],
        ranks=ranks,
        batches=None if batches is None else _dict(batches, "batches"),
        notes=_dict(body["notes"], "notes"),
        files=files,
        arrays=arrays,
        algorithms=tuple(algorithms),
    )


def _file(raw: Any, rank: int, ranks: int) -> StoredFile:
    what = f"file {rank}"
    raw = _dict(raw, what, {"name", "nbytes", "sha256"})
    if raw["name"] != file_name(rank, ranks):
        raise Damaged(
            f"manifest.json: {what} is {short(raw['name'])}, not {file_name(rank, ranks)}"
        )
    if not isinstance(raw["sha256"], str) or not re.fullmatch("[0-9a-f]{64}", raw["sha256"]):
        raise Damaged(f"manifest.json: {what} has no SHA-256: {short(raw['sha256'])}")
    return StoredFile(raw["name"], whole_number(raw["nbytes"], what), raw["sha256"])


def _entry(name: str, raw: Any, files: tuple[StoredFile, ...]) -> Entry:
    raw = _dict(raw, name, {"shape", "dtype", "pieces"})
    shape = tuple(whole_number(n, f"{name}: shape") for n in _list(raw["shape"], name))
    if len(shape) > 32:
        raise Damaged(f"manifest.json: {name} has {len(shape)} axes")
    if not isinstance(raw["dtype"], str) or raw["dtype"] not in ITEMSIZES:
        raise Damaged(f"manifest.json: {name} has the unknown dtype {short(raw['dtype'])}")
    pieces = []
    for piece in _list(raw["pieces"], name):
        piece = _dict(piece, name, {"file", "key", "box", "span"})
        if not isinstance(piece["key"], str) or not re.fullmatch(
            re.escape(name) + r"(#[1-9]\d*)?", piece["key"]
        ):
            raise Damaged(f"manifest.json: a piece of {name} has the key {short(piece['key'])}")
        file = whole_number(piece["file"], f"{name}: file", 0, len(files) - 1)
        box = tuple(_range(pair, name, side) for pair, side in _pairs(piece["box"], shape, name))
        span = _range(piece["span"], name, size_of([stop - start for start, stop in box]))
        pieces.append(Piece(file, piece["key"], box, span))
        if pieces[-1].length * ITEMSIZES[raw["dtype"]] > files[file].nbytes:
            raise Damaged(f"manifest.json: a piece of {name} is longer than its file")
    check_cover(name, shape, pieces)
    return Entry(shape, raw["dtype"], tuple(pieces))


def check_cover(name: str, shape: tuple[int, ...], pieces: Iterable[Piece]) -> None:
    """Raise Damaged unless the pieces contain each element of the array exactly once."""
    spans: dict[Box, list[tuple[int, int]]] = {}
    keys = set()
    for piece in pieces:
        spans.setdefault(piece.box, []).append(piece.span)
        if (piece.file, piece.key) in keys:
            raise Damaged(f"{name}: two pieces are {piece.key} of file {piece.file}")
        keys.add((piece.file, piece.key))
    for box, found in spans.items():
        reached = 0
        for start, stop in sorted(found):
            if start != reached:
                kind = "overlap" if start < reached else "leave a hole"
                raise Damaged(
                    f"{name}: pieces {kind} at element {min(start, reached)} of box {box}"
                )
            reached = stop
        if reached != size_of([stop - start for start, stop in box]):
            raise Damaged(f"{name}: pieces end at element {reached} of box {box}")
    boxes = list(spans)
    if len(boxes) > MOST_BOXES:
        raise Damaged(f"{name}: {len(boxes)} boxes, more than {MOST_BOXES}")
    for index, box in enumerate(boxes):
        for other in boxes[:index]:
            if all(a < d and c < b for (a, b), (c, d) in zip(box, other, strict=True)):
                raise Damaged(f"{name}: boxes {box} and {other} overlap")
    covered = sum(size_of([stop - start for start, stop in box]) for box in boxes)
    if covered != size_of(shape):
        raise Damaged(f"{name}: its pieces have {covered} of {size_of(shape)} elements")


# Checks of JSON values


def whole_number(value: Any, what: str, low: int = 0, high: int = (1 << 63) - 1) -> int:
    """``value``. Raises Damaged unless it is an integer (not a bool) in [low, high]."""
    if type(value) is not int or not low <= value <= high:
        raise Damaged(
            f"manifest.json: {what} is {short(value)}, no whole number in [{low}, {high}]"
        )
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise Damaged(f"manifest.json: {what} is no list: {short(value)}")
    return value


def _dict(value: Any, what: str, keys: set[str] | None = None) -> dict[str, Any]:
    if not isinstance(value, dict) or (keys is not None and value.keys() != keys):
        raise Damaged(
            f"manifest.json: {what} is {short(value)}, not an object of {keys or 'names'}"
        )
    return value


def _pairs(value: Any, shape: tuple[int, ...], what: str) -> Iterable[tuple[Any, int]]:
    if len(_list(value, what)) != len(shape):
        raise Damaged(f"manifest.json: {what} has {len(shape)} axes and a box of {len(value)}")
    return zip(value, shape, strict=True)


def _range(value: Any, what: str, length: int) -> tuple[int, int]:
    """(start, stop). Raises Damaged unless 0 <= start < stop <= length."""
    if len(_list(value, what)) != 2:
        raise Damaged(f"manifest.json: {what}: {short(value)} is no range")
    start, stop = (whole_number(end, what, 0, length) for end in value)
    if start >= stop:
        raise Damaged(f"manifest.json: {what}: the range {start} to {stop} is empty")
    return start, stop


def short(value: Any) -> str:
    """A value as text, truncated if it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
