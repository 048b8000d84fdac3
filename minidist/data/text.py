"""Text as characters: each character is a token, so no tokenizer is needed."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from minidist.data.batches import Dataset
from minidist.data.tokens import split_tokens, token_windows


class Vocabulary:
    """The characters of a text, sorted; a character's token is its index.

    >>> vocabulary = Vocabulary("hello")
    >>> vocabulary.encode("hole")
    array([1, 3, 2, 0])
    >>> vocabulary.decode([1, 0])
    'he'
    """

    def __init__(self, text: str) -> None:
        if not text:
            raise ValueError("an empty text has no characters")
        self.characters = "".join(sorted(set(text)))
        self._code_points = _code_points(self.characters)

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> np.ndarray:
        """The token of every character: (len(text),) int64. Raises ValueError for unknown ones."""
        wanted = _code_points(text)
        tokens = np.searchsorted(self._code_points, wanted)
        unknown = self._code_points[np.minimum(tokens, len(self) - 1)] != wanted
        if unknown.any():
            missing = "".join(sorted({chr(code) for code in wanted[unknown]}))
            raise ValueError(f"encode: the vocabulary does not have {missing!r}")
        return tokens

    def decode(self, tokens: Any) -> str:
        """The text of a sequence of tokens."""
        return "".join(self.characters[int(token)] for token in tokens)


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def characters(
    text: str,
    length: int,
    held_out: float = 0.1,
    stride: int | None = None,
    name: str = "text",
) -> tuple[Dataset, Dataset]:
    """Next-character prediction on any text: (training, held-out), windows of ``length``.

    The last part of the text is held out. ``stride`` is the distance between training windows
    (see ``token_windows``); held-out windows never overlap. ``dataset.decode`` returns text.
    """
    vocabulary = Vocabulary(text)
    train, test = split_tokens(vocabulary.encode(text).astype(np.uint32), held_out)
    more: dict[str, Any] = {"decode": vocabulary.decode, "encode": vocabulary.encode}
    return (
        token_windows(name, train, length, len(vocabulary), stride, **more),
        token_windows(name, test, length, len(vocabulary), **more),
    )


def text_file(
    path: str | Path, length: int, held_out: float = 0.1, stride: int | None = None
) -> tuple[Dataset, Dataset]:
    """``characters`` of a UTF-8 file, gzip-compressed if its name ends in ``.gz``.

    Raises FileNotFoundError, and ValueError if it is not UTF-8.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no text file at {path}")
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    return characters(text, length, held_out, stride, path.stem)


@cache
def shakespeare_text() -> str:
    """1.26 million characters of Shakespeare's tragedies: ``SPEAKER:``, then the speech."""
    stored = files("minidist.data") / "files" / "shakespeare.txt.gz"
    return gzip.decompress(stored.read_bytes()).decode("ascii")


def shakespeare(
    length: int = 128, held_out: float = 0.1, stride: int | None = None
) -> tuple[Dataset, Dataset]:
    """The package's Shakespeare as (training, held-out) next-character windows; 63 classes."""
    return characters(shakespeare_text(), length, held_out, stride, "shakespeare")


def read_in_pieces(path: str | Path, size: int = 1 << 20) -> Iterator[str]:
    """Read a file larger than memory, ``size`` characters at a time: for ``write_tokens``."""
    with open(path, encoding="utf-8") as file:
        while piece := file.read(size):
            yield piece
