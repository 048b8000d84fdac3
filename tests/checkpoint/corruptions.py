"""Ways to damage a checkpoint: each is a function of (folder, random), for ``CORRUPTIONS``.

``refit`` then makes every length and hash in the manifest right again, as an attacker would: only
real checks can refuse it then.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from minidist.checkpoint.manifest import digest


class Bomb:
    """Unpickled, it writes the file ``executed``."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.write_text, (self.marker, "executed")


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("rank-*"))


def any_file(folder: Path, draw: random.Random) -> Path:
    return draw.choice([*shards(folder), folder / "manifest.json"])


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest, and its own hash with it."""
    path = folder / "manifest.json"
    body = json.loads(path.read_text())
    change(body)
    body.pop("sha256", None)
    path.write_text(json.dumps(body | {"sha256": digest(body)}))


def refit(folder: Path) -> None:
    """Make lengths and hashes in the manifest those of the files, where there is a manifest."""
    try:
        body = json.loads((folder / "manifest.json").read_bytes())
        for file in body["files"]:
            data = (folder / file["name"]).read_bytes()
            file |= {"nbytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        body.pop("sha256", None)
        (folder / "manifest.json").write_text(json.dumps(body | {"sha256": digest(body)}))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return


def header(path: Path) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and the data after it."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write(path: Path, head: dict[str, Any], data: bytes, length: int | None = None) -> None:
    text = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def an_array(folder: Path, draw: random.Random, axes: int | None = None) -> tuple[Path, str]:
    """A file and the name of an array in it, of so many axes."""
    found = [
        (path, name)
        for path in shards(folder)
        for name, entry in header(path)[0].items()
        if name != "__metadata__" and (axes is None or len(entry["shape"]) == axes)
    ]
    return draw.choice(found)


# Each returns whether what it did can be known once the hashes are right again.


def truncated(folder: Path, draw: random.Random) -> bool:
    path = any_file(folder, draw)
    data = path.read_bytes()
    path.write_bytes(data[: draw.randrange(len(data))])
    return True


def flipped(folder: Path, draw: random.Random) -> bool:
    path = any_file(folder, draw)
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)
    return False


def resized(folder: Path, draw: random.Random) -> bool:
    path = draw.choice(shards(folder))
    path.write_bytes(path.read_bytes() + draw.randbytes(draw.randrange(1, 100)))
    return True


def emptied(folder: Path, draw: random.Random) -> bool:
    any_file(folder, draw).write_bytes(b"")
    return True


def renamed(folder: Path, draw: random.Random) -> bool:
    path = any_file(folder, draw)
    path.rename(path.with_name(draw.choice(["x", f"{path.name}.bak", "rank-00009-of-00010"])))
    return True


def exchanged(folder: Path, draw: random.Random) -> bool:
    """One rank's file under another's name."""
    first, second = shards(folder)[:2]
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)
    return True


def a_folder_in_its_place(folder: Path, draw: random.Random) -> bool:
    path = any_file(folder, draw)
    path.unlink()
    path.mkdir()
    return True


def pickled(folder: Path, draw: random.Random) -> bool:
    bomb = pickle.dumps(Bomb(folder.parent / "executed"), protocol=draw.randrange(6))
    path = any_file(folder, draw)
    path.write_bytes(bomb if draw.random() < 0.7 else struct.pack("<Q", len(bomb)) + bomb)
    return True


def archived(folder: Path, draw: random.Random) -> bool:
    """A NumPy file with pickled objects."""
    path = draw.choice(shards(folder))
    with path.open("wb") as file:
        objects = np.array([Bomb(folder.parent / "executed")], dtype=object)
        np.savez(file, objects) if draw.random() < 0.5 else np.save(file, objects)
    return True


def absurd_length_of_header(folder: Path, draw: random.Random) -> bool:
    path = draw.choice(shards(folder))
    head, data = header(path)
    write(path, head, data, draw.choice([0, 1, 2**31, 2**63 - 1, 2**64 - 1, 10**9]))
    return True


def absurd_header(folder: Path, draw: random.Random) -> bool:
    path, name = an_array(folder, draw)
    head, data = header(path)
    entry = head[name]
    what = draw.randrange(8)
    if what == 0:
        entry["shape"] = [10**6] * 4
    elif what == 1:
        entry["data_offsets"] = [2**62, 2**62 + 8]
    elif what == 2:
        entry["data_offsets"] = entry["data_offsets"][::-1]
    elif what == 3:
        entry["dtype"] = draw.choice(["F8", "BF16", "object", "", "F64", "I64", "BOOL"])
        if header(path)[0][name]["dtype"] == entry["dtype"]:
            entry["dtype"] = "F16"
    elif what == 4:
        entry["shape"] = [-1]
    elif what == 5:
        head["extra"] = {"dtype": "F32", "shape": [0], "data_offsets": [len(data), len(data)]}
    elif what == 6:
        head[f"{name}x"] = head.pop(name)
    else:
        text = b"[" * 100_000
        path.write_bytes(struct.pack("<Q", len(text)) + text + data)
        return True
    write(path, head, data)
    return True


def transposed(folder: Path, draw: random.Random) -> bool:
    """In the file, in the manifest, or both."""
    path, name = an_array(folder, draw, axes=2)
    head, data = header(path)
    square = len(set(head[name]["shape"])) == 1
    where = "file" if square else draw.choice(["file", "manifest", "both"])
    if where != "manifest":
        start, stop = head[name]["data_offsets"]
        kind = np.dtype(f"f{(stop - start) // int(np.prod(head[name]['shape']))}")
        values = np.frombuffer(data[start:stop], kind).reshape(head[name]["shape"])
        data = data[:start] + values.T.copy().tobytes() + data[stop:]
        head[name]["shape"].reverse()
        write(path, head, data)
    if where != "file":

        def change(body):
            body["arrays"][name]["shape"].reverse()
            for piece in body["arrays"][name]["pieces"]:
                piece["box"].reverse()

        edit(folder, change)
    return not square


def one_element_too_long(folder: Path, draw: random.Random) -> bool:
    """The file alone, or the span with it, or the array's shape too."""
    path, name = an_array(folder, draw, axes=1)
    head, data = header(path)
    start, stop = head[name]["data_offsets"]
    size = (stop - start) // head[name]["shape"][0]
    head[name]["shape"][0] += 1
    for entry in head.values():
        if entry.get("data_offsets", [0])[0] >= stop:
            entry["data_offsets"] = [end + size for end in entry["data_offsets"]]
    head[name]["data_offsets"] = [start, stop + size]
    write(path, head, data[:stop] + bytes(size) + data[stop:])
    if draw.random() < 0.6:
        longer = draw.random() < 0.5

        def change(body):
            entry, index = body["arrays"][name], shards(folder).index(path)
            for piece in entry["pieces"]:
                if piece["file"] == index:
                    piece["span"][1] += 1
                if longer and len(entry["shape"]) == 1:
                    piece["box"][0][1] += 1
            if longer and len(entry["shape"]) == 1:
                entry["shape"][0] += 1

        edit(folder, change)
    return True


NO_NUMBERS = [-1, 2**70, 1.5, True, None, "3", [], {}, float("nan"), 10**6]


def wrong_number(folder: Path, draw: random.Random) -> bool:
    """Something impossible in place of a shape, a span, a box, a file."""

    def change(body):
        entry = body["arrays"][
            draw.choice(sorted(n for n, entry in body["arrays"].items() if entry["shape"]))
        ]
        bad, piece = draw.choice(NO_NUMBERS), draw.choice(entry["pieces"])
        draw.choice(
            [
                lambda: entry["shape"].__setitem__(0, bad),
                lambda: piece["span"].__setitem__(draw.randrange(2), bad),
                lambda: piece["box"].__setitem__(0, [0, bad]),
                lambda: piece.__setitem__("file", bad),
                lambda: piece.__setitem__("key", bad),
                lambda: body.__setitem__("ranks", bad),
            ]
        )()

    edit(folder, change)
    return True


def pieces_that_do_not_fit(folder: Path, draw: random.Random) -> bool:
    """One removed, doubled, moved by one, or without its array."""

    def change(body):
        cut = sorted(n for n, entry in body["arrays"].items() if len(entry["pieces"]) > 1)
        entry = body["arrays"][name := draw.choice(cut)]
        what = draw.randrange(4)
        if what == 0:
            entry["pieces"].pop()
        elif what == 1:
            entry["pieces"].append(entry["pieces"][0])
        elif what == 2:
            piece = draw.choice(entry["pieces"])
            by = draw.choice([-1, 1])
            piece["span"] = [end + by for end in piece["span"]]
        else:
            del body["arrays"][name]

    edit(folder, change)
    return True


def path_outside(folder: Path, draw: random.Random) -> bool:
    outside = folder.parent / "elsewhere.safetensors"
    outside.write_bytes(shards(folder)[0].read_bytes())

    def change(body):
        name = draw.choice(["../elsewhere.safetensors", str(outside), "", ".", "a\0b", "x/../y"])
        body["files"][0]["name"] = name

    edit(folder, change)
    return True


def other_entries(folder: Path, draw: random.Random) -> bool:
    """Entries missing, additional, or of another kind."""

    def change(body):
        key = draw.choice(["step", "seed", "files", "arrays", "format", "ranks", "notes", "method"])
        what = draw.randrange(3)
        if what == 0:
            del body[key]
        elif what == 1:
            body["more"] = 1
        else:
            body[key] = draw.choice([None, 1.5, -(2**80)])

    edit(folder, change)
    return True


def no_manifest_at_all(folder: Path, draw: random.Random) -> bool:
    text = draw.choice([b"[" * 200_000, b"{}", b"null", b"\xff\xfe", b'{"format": 1}', b"1" * 9999])
    (folder / "manifest.json").write_bytes(text)
    return True


CORRUPTIONS = [
    truncated,
    flipped,
    resized,
    emptied,
    renamed,
    exchanged,
    a_folder_in_its_place,
    pickled,
    archived,
    absurd_length_of_header,
    absurd_header,
    transposed,
    one_element_too_long,
    wrong_number,
    pieces_that_do_not_fit,
    path_outside,
    other_entries,
    no_manifest_at_all,
]
