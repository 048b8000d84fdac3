"""Wrong answers: a solution with one piece of text replaced, and the words that must explain it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from minidist.exercises import EXERCISES, find


@dataclass(frozen=True)
class Wrong:
    """``old`` becomes ``new`` in the solution; this loses ``mark``, for a reason with ``words``."""

    exercise: str
    what: str
    old: str
    new: str
    mark: str
    words: str

    def __str__(self) -> str:
        return f"{self.exercise}: {self.what}"

    def write(self, folder: Path) -> Path:
        source = find(self.exercise, EXERCISES).solution.read_text()
        if self.old not in source:
            raise LookupError(f"{self}: the solution no longer has {self.old!r}")
        path = folder / "answer.py"
        path.write_text(source.replace(self.old, self.new))
        return path


WRONG = [
    Wrong(
        "ring",
        "whole arrays go around",
        "    parts = np.array_split(array, p)",
        "    total, moving, got = array.copy(), array.copy(), np.empty_like(array)\n"
        "    for _ in range(p - 1):\n"
        "        comm.sendrecv(moving, right, got, left)\n"
        "        total += got\n"
        "        moving, got = got, moving\n"
        "    array[...] = total\n"
        "    return\n"
        "    parts = np.array_split(array, p)",
        "bytes",
        "sends the whole array in each round",
    ),
    Wrong(
        "ring",
        "the all-gather is missing",
        "    for round in range(p - 1):\n        comm.sendrecv(parts[(rank - round + 1)",
        "    for round in range(0):\n        comm.sendrecv(parts[(rank - round + 1)",
        "messages",
        "one half, reduce-scatter or all-gather, is missing",
    ),
    Wrong("ring", "overwrites", "] += arrived", "][...] = arrived", "result", "the sum of all"),
    Wrong("ring", "divides", "    for round in range(p - 1):\n        comm",
          "    array /= p\n    for round in range(p - 1):\n        comm", "result", "has the mean"),
    Wrong("ring", "another array", "    parts = np.array_split(array, p)",
          "    array = array.copy()\n    parts = np.array_split(array, p)",
          "result", "is unchanged"),
    Wrong("ring", "one round too few", "range(p - 1):\n        arrived",
          "range(p - 2):\n        arrived", "messages", "2(p - 1)"),
]  # fmt: skip
