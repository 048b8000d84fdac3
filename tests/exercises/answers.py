"""Wrong answers: a solution with one piece of text replaced, and the words that must explain it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from minidist.exercises import EXERCISES, find


@dataclass(frozen=True)
class Wrong:
    """``old`` becomes ``new`` in the solution; this loses ``mark``, for a reason with ``words``.

    ``words`` may name several, with | between them.
    """

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
    Wrong("matmul_backward", "b not transposed", "grad @ b.T", "grad @ b", "gradient of a",
          "b is not transposed"),
    Wrong("matmul_backward", "a not transposed", "a.T @ grad", "a @ grad", "gradient of b",
          "a is not transposed"),
    Wrong("matmul_backward", "exchanged", "a.T @ grad", "grad @ a.T", "gradient of b",
          "the factors are exchanged"),
    Wrong("matmul_backward", "in place", "    return", "    grad *= 1.5\n    return",
          "inputs untouched", "grad was changed"),
    Wrong("matmul_backward", "a mean", "a.T @ grad", "a.T @ grad / len(a)", "gradient of b",
          "should be"),
    Wrong("broadcast_backward", "mean", "grad = grad.sum(axis=tuple(range(missing)))",
          "grad = grad.mean(axis=tuple(range(missing))) if missing else grad",
          "axes in front", "this is a mean"),
    Wrong("broadcast_backward", "only in front", "    repeated = [",
          "    return grad\n    repeated = [",
          "axes of length 1", "needs a gradient of that shape"),
    Wrong("broadcast_backward", "axes dropped", "keepdims=True", "keepdims=False",
          "axes of length 1", "needs a gradient of that shape"),
    Wrong("broadcast_backward", "the first only", "grad = grad.sum(axis=tuple(range(missing)))",
          "grad = grad[(0,) * missing]", "axes in front", "takes one of the repeated"),
    Wrong("backward_order", "from the first", "noted[::-1]", "noted", "order", "comes before"),
    Wrong("backward_order", "every way", "            if parent not in seen:",
          "            if noted.count(parent) < 2:", "each once", "occurs more than once"),
    Wrong("backward_order", "calls itself", "    noted, seen, stack",
          "    def visit(name):\n        for parent in parents[name]:\n"
          "            if parent not in seen:\n"
          "                seen.add(parent)\n                visit(parent)\n"
          "        noted.append(name)\n"
          "    noted, seen = [], {root}\n    visit(root)\n    return noted[::-1]\n"
          "    noted, seen, stack", "a long chain", "stack of your own"),
    Wrong("backward_order", "all names", "    return noted[::-1]",
          "    return [n for n in parents if n not in seen] + noted[::-1]",
          "only what the root needs", "does not depend on it"),
    Wrong("backward_order", "level by level", "    noted, seen, stack",
          "    order, known = [root], {root}\n    for name in order:\n"
          "        new = [p for p in dict.fromkeys(parents[name]) if p not in known]\n"
          "        order += new\n        known |= set(new)\n"
          "    return order\n    noted, seen, stack", "order", "comes before"),
    Wrong("cross_entropy", "no shift", "logits - logits.max(axis=1, keepdims=True)\n    log",
          "logits\n    log", "large logits", "shift first"),
    Wrong("cross_entropy", "mean of the part", ".sum() / count", ".sum() / max(1, len(targets))",
          "parts of a batch", "divided by the samples of this part"),
    Wrong("cross_entropy", "not divided", "    return grad / count", "    return grad",
          "parts of a batch", "not divided by count"),
    Wrong("cross_entropy", "no 1", "    grad[np.arange(len(targets)), targets] -= 1\n", "",
          "gradient", "1 is not subtracted"),
    Wrong("cross_entropy", "sign", "(log_sums - shifted[np.arange(len(targets)), targets])",
          "(shifted[np.arange(len(targets)), targets] - log_sums)", "loss", "sign is wrong"),
    Wrong("adam", "no correction", "(m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)",
          "m / (np.sqrt(v) + eps)", "first step", "not corrected"),
    Wrong("adam", "eps inside", "(np.sqrt(v / (1 - b2**t)) + eps)",
          "np.sqrt(v / (1 - b2**t) + eps)", "first step", "eps is added to the root"),
    Wrong("adam", "no root", "np.sqrt(v / (1 - b2**t))", "(v / (1 - b2**t))", "first step",
          "*root* of V"),
    Wrong("adam", "other arrays", "m[...] = ", "m = ", "in place", "m has not changed"),
    Wrong("adam", "gradient reused", "    w -=", "    g *= 0\n    w -=", "gradient untouched",
          "g was changed"),
    Wrong("central", "no way back",
          "        for rank in range(1, comm.size):\n            comm.send",
          "        for rank in range(0):\n            comm.send", "messages",
          "wait for what cannot come"),
    Wrong("central", "everybody to everybody", "    if comm.rank == 0:",
          "    mine, other = array.copy(), np.empty_like(array)\n"
          "    for step in range(1, comm.size):\n"
          "        to, source = (comm.rank + step) % comm.size, (comm.rank - step) % comm.size\n"
          "        comm.sendrecv(mine, to, other, source)\n"
          "        array += other\n"
          "    return\n    if comm.rank == 0:", "messages", "p times the messages"),
    Wrong("central", "the last one counts", "            array += other",
          "            array[...] = other", "result", "the sum of all ranks"),
    Wrong("central", "all held", "        other = np.empty_like(array)\n",
          "        held = [np.empty_like(array) for _ in range(comm.size)]\n"
          "        other = held[0]\n", "memory", "one array more"),
    Wrong("central", "a mean", "        for rank in range(1, comm.size):\n            comm.send",
          "        array /= comm.size\n"
          "        for rank in range(1, comm.size):\n            comm.send",
          "result", "has the mean"),
    Wrong("halving_doubling", "whole arrays", "    low, high, halves",
          "    other, distance = np.empty_like(array), 1\n    while distance < comm.size:\n"
          "        comm.sendrecv(array, comm.rank ^ distance, other, comm.rank ^ distance)\n"
          "        array += other\n        distance *= 2\n    return\n    low, high, halves",
          "bytes", "the whole array in each round"),
    Wrong("halving_doubling", "no doubling", "in reversed(halves)", "in []", "messages",
          "one half is missing"),
    Wrong("halving_doubling", "not reversed", "reversed(halves)", "halves", "result",
          "the sum of all ranks|which is shorter|received"),
    Wrong("halving_doubling", "a ring", "    low, high, halves",
          "    p, rank = comm.size, comm.rank\n    parts = np.array_split(array, p)\n"
          "    got = np.empty_like(parts[0])\n"
          "    for r in range(p - 1):\n"
          "        arrived = got[: parts[(rank - r - 1) % p].size]\n"
          "        comm.sendrecv(parts[(rank - r) % p], (rank + 1) % p, arrived, (rank - 1) % p)\n"
          "        parts[(rank - r - 1) % p] += arrived\n"
          "    for r in range(p - 1):\n"
          "        comm.sendrecv(parts[(rank - r + 1) % p], (rank + 1) % p,\n"
          "                      parts[(rank - r) % p], (rank - 1) % p)\n"
          "    return\n    low, high, halves", "messages", "that is a ring"),
    Wrong("halving_doubling", "copies", "    low, high, halves",
          "    kept = [array.copy() for _ in range(comm.size)]\n    low, high, halves", "memory",
          "half an array"),
]  # fmt: skip
