"""The files of a checkpoint: verification, and lazy reading.

``verify`` checks the length and SHA-256 of each file, and compares each array's dtype and shape in
the file's header with the manifest. So even a file that was changed together with its hash must fit
the manifest.

``Stored`` is a state for ``Method.load`` whose arrays are read only when needed, and only the part
that is needed: a ZeRO rank reads its shard, for any number of ranks that wrote it.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from minidist.checkpoint.files import MANIFEST
from minidist.checkpoint.manifest import DTYPES, Damaged, Entry, Manifest, Piece, parse
from minidist.parallel.shares import size_of, whole_box

LAZY = ("parameters/", "optimizer/")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint. Raises Damaged if it is missing or wrong."""
    try:
        return parse((folder / MANIFEST).read_bytes())
    except OSError as error:
        raise Damaged(f"{folder.name}/{MANIFEST} cannot be read: {error}") from error
    except Damaged as error:
        raise Damaged(f"{folder.name}/{error}") from None


def verify(folder: Path, manifest: Manifest, files: Iterable[int]) -> None:
    """Check the files with these numbers; ranks divide the files. Raises Damaged."""
    expected: dict[int, dict[str, tuple[str, Piece]]] = {index: {} for index in files}
    for entry in manifest.arrays.values():
        for piece in entry.pieces:
            if piece.file in expected:
                expected[piece.file][piece.key] = entry.dtype, piece
    for index, arrays in expected.items():
        file = manifest.files[index]
        path = folder / file.name
        try:
            check_bytes(path, file.nbytes, file.sha256)
            check_header(path, arrays)
        except (OSError, SafetensorError) as error:
            raise Damaged(f"{folder.name}/{file.name} cannot be read: {error}") from error
        except Damaged as error:
            raise Damaged(f"{folder.name}/{file.name} {error}") from None


def check_bytes(path: Path, nbytes: int, sha256: str) -> None:
    """Raise Damaged unless the file is regular and has this length and hash."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise Damaged("is not a regular file")
    if status.st_size != nbytes:
        raise Damaged(f"has {status.st_size} bytes, and {nbytes} were written")
    with open(path, "rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != sha256:
        raise Damaged(f"was changed: its SHA-256 is {found}, and {sha256} was written")


def check_header(path: Path, expected: dict[str, tuple[str, Piece]]) -> None:
    """Raise Damaged unless the file has exactly these arrays, of these shapes and dtypes."""
    with safe_open(path, "np") as opened:
        names = set(opened.keys())
        if names != expected.keys():
            different = sorted(names ^ expected.keys())[:5]
            raise Damaged(f"and the manifest differ in the arrays {different}")
        for name, (dtype, piece) in expected.items():
            view = opened.get_slice(name)
            got = DTYPES.get(view.get_dtype(), view.get_dtype()), tuple(view.get_shape())
            if got != (dtype, piece.stored_shape):
                raise Damaged(
                    f"has {name} as {got[0]} of shape {got[1]}, and the manifest says {dtype} of "
                    f"shape {piece.stored_shape}"
                )


class Stored(Mapping[str, Any]):
    """A state in verified files, by serial names."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._open: dict[int, Any] = {}
        self.bytes_read = 0

    def __getitem__(self, name: str) -> Any:
        array = StoredArray(self, self.manifest.arrays[name])
        return array if name.startswith(LAZY) else np.asarray(array)

    def __iter__(self) -> Iterator[str]:
        return iter(self.manifest.arrays)

    def __len__(self) -> int:
        return len(self.manifest.arrays)

    def read(self, piece: Piece, part: slice) -> np.ndarray:
        """The elements ``part`` of a piece, counted from its beginning; 1-D."""
        if piece.file not in self._open:
            path = self.folder / self.manifest.files[piece.file].name
            self._open[piece.file] = safe_open(path, "np").__enter__()
        opened = self._open[piece.file]
        if len(piece.stored_shape) == 1:  # reads only the part
            values = opened.get_slice(piece.key)[part.start : part.stop]
            self.bytes_read += values.nbytes
            return values
        values = opened.get_tensor(piece.key)
        self.bytes_read += values.nbytes
        return values.reshape(-1)[part]


class StoredArray:
    """An array in files; it is read when it is converted to a NumPy array."""

    def __init__(self, stored: Stored, entry: Entry) -> None:
        self.stored, self.entry = stored, entry
        self.shape = entry.shape
        self.dtype = np.dtype(entry.dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The whole array, from all of its pieces."""
        whole = np.empty(self.shape, self.dtype)
        for piece in self.entry.pieces:
            values = self.stored.read(piece, slice(0, piece.length))
            inside = tuple(slice(start, stop) for start, stop in piece.box)
            box = np.ascontiguousarray(whole[inside])  # a copy, unless it is contiguous
            box.reshape(-1)[slice(*piece.span)] = values
            whole[inside] = box.reshape(whole[inside].shape)
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def __getitem__(self, part: Any) -> np.ndarray:
        return np.asarray(self)[part]

    def reshape(self, *shape: int) -> Any:
        """``reshape(-1)`` gives a ``StoredFlat``, without reading; other shapes are read."""
        return StoredFlat(self) if shape == (-1,) else np.asarray(self).reshape(*shape)


class StoredFlat:
    """A ``StoredArray`` in one dimension: ``flat[part]`` reads only this part."""

    def __init__(self, array: StoredArray) -> None:
        self.array = array
        self.size = size_of(array.shape)

    def __getitem__(self, part: slice) -> np.ndarray:
        low, high, _ = part.indices(self.size)
        entry, stored = self.array.entry, self.array.stored
        found = np.empty(max(0, high - low), self.array.dtype)
        for piece in entry.pieces:
            if piece.box != whole_box(entry.shape):  # its elements are not contiguous in the array
                return np.asarray(self.array).reshape(-1)[part]
        for piece in entry.pieces:
            start, stop = max(low, piece.span[0]), min(high, piece.span[1])
            if start < stop:
                inside = slice(start - piece.span[0], stop - piece.span[0])
                found[start - low : stop - low] = stored.read(piece, inside)
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.array, dtype).reshape(-1)
