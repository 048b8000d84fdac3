"""A manifest alone: what covers an array, and what is refused before any file is opened."""

from __future__ import annotations

import json

import pytest

from minidist.checkpoint import Damaged
from minidist.checkpoint.manifest import (
    Entry,
    Manifest,
    Piece,
    StoredFile,
    check_cover,
    digest,
    file_name,
    parse,
)

WHOLE = ((0, 6), (0, 4))


def pieces(*found):
    return [Piece(file, "w", box, span) for file, (box, span) in enumerate(found)]


GOOD = {
    "one": pieces((WHOLE, (0, 24))),
    "spans": pieces((WHOLE, (10, 24)), (WHOLE, (0, 10))),
    "columns": pieces((((0, 6), (0, 1)), (0, 6)), (((0, 6), (1, 4)), (0, 18))),
    "spans of rows": pieces(
        (((0, 2), (0, 4)), (0, 8)), (((2, 6), (0, 4)), (0, 9)), (((2, 6), (0, 4)), (9, 16))
    ),
}
BAD = {
    "overlap": (pieces((WHOLE, (0, 14)), (WHOLE, (10, 24))), "overlap at element 10"),
    "hole": (pieces((WHOLE, (0, 10)), (WHOLE, (11, 24))), "leave a hole at element 10"),
    "end": (pieces((WHOLE, (0, 23))), "end at element 23"),
    "none": ([], "have 0 of 24 elements"),
    "columns overlap": (
        pieces((((0, 6), (0, 2)), (0, 12)), (((0, 6), (1, 4)), (0, 18))),
        "boxes .* overlap",
    ),
    "a row is missing": (pieces((((0, 5), (0, 4)), (0, 20))), "have 20 of 24 elements"),
    "as many, but twice the same": (
        pieces((((0, 3), (0, 4)), (0, 12)), (((1, 4), (0, 4)), (0, 12))),
        "overlap",
    ),
    "one key twice": ([Piece(0, "w", WHOLE, (0, 24))] * 2, "two pieces are w of file 0"),
}


@pytest.mark.parametrize("found", GOOD.values(), ids=GOOD)
def test_covers(found):
    check_cover("w", (6, 4), found)
    for missing in found:
        with pytest.raises(Damaged):
            check_cover("w", (6, 4), [piece for piece in found if piece is not missing])


@pytest.mark.parametrize("found, reason", BAD.values(), ids=BAD)
def test_does_not_cover(found, reason):
    with pytest.raises(Damaged, match=reason):
        check_cover("w", (6, 4), found)


def manifest(**changes) -> Manifest:
    entry = Entry((6, 4), "float32", tuple(pieces((WHOLE, (0, 24)))))
    file = StoredFile(file_name(0, 1), 200, "0" * 64)
    values = {
        "step": 3, "seed": 1, "method": "Serial", "optimizer": "SGD", "ranks": 1, "batches": None,
        "notes": {"a": [1, None]}, "files": (file,), "arrays": {"w": entry},
    }  # fmt: skip
    return Manifest(**(values | changes))


def test_there_and_back():
    assert parse(manifest().text().encode()) == manifest()


def changed(change) -> bytes:
    body = json.loads(manifest().text())
    change(body)
    del body["sha256"]
    return json.dumps(body | {"sha256": digest(body)}).encode()


def test_a_piece_longer_than_its_file_is_refused_before_memory_is_asked_for():
    def change(body):
        long = 10**15
        body["arrays"]["w"]["shape"] = [long, 4]
        piece = body["arrays"]["w"]["pieces"][0]
        piece["box"], piece["span"] = [[0, long], [0, 4]], [0, 4 * long]

    with pytest.raises(Damaged, match="a piece of w is longer than its file"):
        parse(changed(change))


@pytest.mark.parametrize("key", ["v", "w#0", "w#1#1", "w#", "../w", 3, None])
def test_keys_are_the_arrays_name_and_a_number(key):
    with pytest.raises(Damaged, match="a piece of w has the key"):
        parse(changed(lambda body: body["arrays"]["w"]["pieces"][0].update(key=key)))
