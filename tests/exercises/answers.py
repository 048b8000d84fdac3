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
          "times what it should be"),
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
    Wrong("uneven_shards", "average of averages", "    total = np.append",
          "    mean = x.T @ (x @ w - y) / max(1, len(x))\n    all_reduce(comm, mean)\n"
          "    return mean / comm.size\n    total = np.append",
          "uneven shards", "average of the ranks' averages"),
    Wrong("uneven_shards", "sum of averages", "    total = np.append",
          "    mean = x.T @ (x @ w - y) / max(1, len(x))\n    all_reduce(comm, mean)\n"
          "    return mean\n    total = np.append",
          "even shards", "the sum of the ranks' averages"),
    Wrong("uneven_shards", "not divided", "total[:-1] / total[-1]", "total[:-1]",
          "uneven shards", "not divided by their number"),
    Wrong("uneven_shards", "two all-reduces", "    total = np.append",
          "    all_reduce(comm, np.zeros(1))\n    total = np.append", "one all-reduce",
          "can travel in the same array"),
    Wrong("uneven_shards", "own alone", "    all_reduce(comm, total)\n", "", "uneven shards",
          "of its own shard alone"),
    Wrong("uneven_shards", "by the ranks", "/ total[-1]", "/ comm.size", "uneven shards",
          "divided by the number of ranks"),
    Wrong("buckets", "each apart", ">= self.limit", ">= 0", "number of buckets",
          "an all-reduce for each gradient"),
    Wrong("buckets", "all at the end", ">= self.limit", ">= 10**18", "number of buckets",
          "everything in one all-reduce"),
    Wrong("buckets", "no overlap", "        bucket = np.concatenate(self.open)\n",
          "        bucket = np.concatenate(self.open)\n"
          "        self.all_reduce(self.comm, bucket)\n"
          "        future = type('Done', (), {'wait': lambda self: None})()\n"
          "        self.sent.append((future, bucket, self.open))\n"
          "        self.open = []\n        return\n", "overlap", "nothing is sent while it runs"),
    Wrong("buckets", "not copied back", "grad[...] = bucket[start : start + grad.size]", "pass",
          "result", "must be copied back"),
    Wrong("buckets", "the rest is lost", "        if self.open:\n            self.send()\n", "",
          "result", "has not changed"),
    Wrong("buckets", "closed for good", "        self.sent = []\n", "        self.limit = 10**18\n",
          "number of buckets", "with a limit of"),
    Wrong("zero1", "plain data parallel", "        own = self.reduce_scatter(self.comm, grad)\n"
          "        self.adam(self.part, own, self.m, self.v, self.t)\n"
          "        self.all_gather(self.comm, self.w)\n",
          "        total = np.zeros_like(self.w)\n"
          "        np.array_split(total, self.comm.size)[self.comm.rank][...] = (\n"
          "            self.reduce_scatter(self.comm, grad))\n"
          "        self.all_gather(self.comm, total)\n"
          "        if self.t == 1:\n"
          "            self.m, self.v = np.zeros_like(self.w), np.zeros_like(self.w)\n"
          "        self.adam(self.w, total, self.m, self.v, self.t)\n",
          "state held", "each rank steps all parameters"),
    Wrong("zero1", "whole state", "np.zeros_like(self.part), np.zeros_like(self.part)",
          "np.zeros_like(w)[: self.part.size], np.zeros_like(w)[: self.part.size]",
          "state held", "for the own part only"),
    Wrong("zero1", "no all-gather", "        self.all_gather(self.comm, self.w)\n", "", "result",
          "own part right and the others not"),
    Wrong("zero1", "a mean", "self.reduce_scatter(self.comm, grad)",
          "self.reduce_scatter(self.comm, grad) / self.comm.size", "result",
          "divided by the number of ranks"),
    Wrong("zero1", "own gradient", "own = self.reduce_scatter(self.comm, grad)",
          "own = np.array_split(grad, self.comm.size)[self.comm.rank]", "bytes", "are needed"),
    Wrong("zero2", "nothing is sent", "        self.grad += self.reduce_scatter(self.comm, grad)",
          "        self.grad += np.array_split(grad, self.comm.size)[self.comm.rank]", "bytes",
          "reduce-scatters and an all-gather"),
    Wrong("zero2", "kept whole, sent at the step",
          "        self.grad += self.reduce_scatter(self.comm, grad)\n\n    def step(self):\n",
          "        self.all = getattr(self, 'all', 0) + grad\n\n    def step(self):\n"
          "        self.grad += self.reduce_scatter(self.comm, self.all)\n        self.all = 0\n",
          "bytes", "ZeRO-1"),
    Wrong("zero2", "not cleared", "        self.grad[...] = 0\n", "", "result",
          "begins from zero"),
    Wrong("zero2", "the last one alone", "self.grad += self", "self.grad = self", "result",
          "only the last microbatch"),
    Wrong("zero2", "list of gradients", "        self.grad += ",
          "        self.kept = getattr(self, 'kept', []) + [grad.copy()]\n        self.grad += ",
          "held", "keep no whole"),
    Wrong("top_k", "forgets",
          "        self.residual = corrected\n        self.residual[positions] = 0\n",
          "", "error feedback", "what is left out is lost"),
    Wrong("top_k", "largest with sign", "-np.abs(corrected)", "-corrected", "first step",
          "by *absolute* value"),
    Wrong("top_k", "sends it again", "        self.residual[positions] = 0\n", "",
          "error feedback", "sent again and again"),
    Wrong("top_k", "a sum", "return total / self.comm.size", "return total", "first step",
          "the average is wanted"),
    Wrong("top_k", "everything", "[: self.k]", "", "k numbers", "and k is"),
    Wrong("top_k", "changes the gradient", "corrected = grad + self.residual",
          "grad += self.residual\n        corrected = grad", "untouched", "was changed"),
    Wrong("stale_server", "never waits", "<= self.staleness", "<= 10**9", "bound", "the bound is"),
    Wrong("stale_server", "always synchronous", "<= self.staleness", "<= 0",
          "nobody waits in vain", "are allowed"),
    Wrong("stale_server", "one too few", "<= self.staleness", "< self.staleness",
          "nobody waits in vain", "are allowed"),
    Wrong("stale_server", "nobody is woken", "        return free", "        return []",
          "nobody waits in vain", "waits on"),
    Wrong("stale_server", "everybody is woken", "if self.near(one))", ")", "bound", "is let go"),
    Wrong("stale_server", "against the fastest", "self.steps[worker] - min(self.steps)",
          "max(self.steps) - self.steps[worker]", "nobody waits in vain|bound", "ahead"),
    Wrong("one_f_one_b", "GPipe", "min(microbatches, stages - 1 - stage)", "microbatches",
          "in flight", "as in GPipe"),
    Wrong("one_f_one_b", "no warm-up", "min(microbatches, stages - 1 - stage)", "0", "time",
          "the warm-up is too short"),
    Wrong("one_f_one_b", "one too many", "stages - 1 - stage", "stages - stage", "in flight",
          "in flight, and 1F1B"),
    Wrong("one_f_one_b", "no cool-down", "range(microbatches - warm_up, microbatches)", "range(0)",
          "complete", "one F and one B"),
    Wrong("one_f_one_b", "backward first", '("F", number), ("B", number - warm_up)]',
          '("B", number - warm_up), ("F", number)]', "no deadlock", "waits for ever"),
    Wrong("tensor_parallel", "bias on every rank",
          "    y = h @ c\n    all_reduce(comm, y)\n    return y + d, h",
          "    y = h @ c + d\n    all_reduce(comm, y)\n    return y, h", "forward",
          "added on every rank"),
    Wrong("tensor_parallel", "not summed", "    all_reduce(comm, y)\n", "", "forward",
          "must be summed over the ranks"),
    Wrong("tensor_parallel", "gradient of x not summed", "    all_reduce(comm, grad_x)\n", "",
          "gradient of x", "must be summed"),
    Wrong("tensor_parallel", "gradient of y summed", "    grad_h = ",
          "    grad = grad.copy()\n    all_reduce(comm, grad)\n    grad_h = ", "own gradients",
          "p times too large"),
    Wrong("tensor_parallel", "hidden units gathered", "    y = h @ c\n",
          "    all_reduce(comm, h.copy())\n    y = h @ c\n", "messages", "are enough"),
    Wrong("checkpoint", "overwrites", 'with open(str(path) + ".new", "wb") as file:\n'
          "        file.write(hashlib.sha256(content).digest())\n"
          "        file.write(content)\n        file.flush()\n"
          "        os.fsync(file.fileno())\n"
          '    os.replace(str(path) + ".new", path)',
          'with open(path, "wb") as file:\n'
          "        file.write(hashlib.sha256(content).digest())\n"
          "        file.write(content)\n        file.flush()\n"
          "        os.fsync(file.fileno())\n",
          "killed", "nothing can be loaded"),
    Wrong("checkpoint", "no checksum", "    if hashlib.sha256(content).digest() != digest:",
          "    if False:", "damage", "flipped bit|is loaded|raises"),
    Wrong("checkpoint", "no fsync", "        os.fsync(file.fileno())\n", "", "on the disk",
          "os.fsync"),
    Wrong("checkpoint", "removes the old one first", "    os.replace(",
          "    if os.path.exists(path):\n        os.remove(path)\n    os.replace(", "killed",
          "nothing can be loaded"),
    Wrong("checkpoint", "pickle", "    listed = [",
          "    import pickle\n    with open(str(path) + '.new', 'wb') as file:\n"
          "        file.write(pickle.dumps((step, arrays)))\n        file.flush()\n"
          "        os.fsync(file.fileno())\n    os.replace(str(path) + '.new', path)\n    return\n"
          "    listed = [", "no pickle", "save writes a pickle"),
    Wrong("checkpoint", "leaves a copy", "    os.replace(", "    import shutil\n"
          "    shutil.copy(str(path) + '.new', str(path) + '.bak')\n    os.replace(", "no litter",
          "is left beside"),
    # Mistakes that nobody foresaw while the marks were written
    Wrong("ring", "pairs that are no neighbours",
          "    for round in range(p - 1):\n        arrived",
          "    own = parts[rank]\n    for d in range(1, p):\n"
          "        arrived = incoming[: own.size]\n"
          "        comm.sendrecv(parts[(rank + d) % p], (rank + d) % p, arrived, (rank - d) % p)\n"
          "        own += arrived\n    for d in range(1, p):\n"
          "        comm.sendrecv(own, (rank + d) % p, parts[(rank - d) % p], (rank - d) % p)\n"
          "    return\n    for round in range(p - 1):\n        arrived",
          "neighbours|bytes", "not its neighbour"),
    Wrong("ring", "sent in half the precision", "    parts = np.array_split(array, p)",
          "    result = array\n    array = array.astype(np.float32)\n"
          "    all_reduce_32(comm, array)\n    result[...] = array\n\n"
          "def all_reduce_32(comm, array):\n"
          "    p, rank = comm.size, comm.rank\n"
          "    left, right = (rank - 1) % p, (rank + 1) % p\n"
          "    parts = np.array_split(array, p)", "bytes", "4 bytes a number"),
    Wrong("matmul_backward", "transposed at the end", "a.T @ grad", "(a.T @ grad).T",
          "gradient of b", "has the shape|should be"),
    Wrong("broadcast_backward", "a shape alone", "    repeated = [",
          "    return grad.reshape(-1)[: max(1, grad.size) and __import__('math').prod(shape)]"
          ".reshape(shape)\n    repeated = [", "axes of length 1", "takes one of the repeated"),
    Wrong("backward_order", "parents before brothers", "    noted, seen, stack",
          "    order, left = {}, [root]\n    while left:\n        name = left.pop()\n"
          "        if name not in order:\n            order[name] = True\n"
          "            left += parents[name]\n    return list(order)\n    noted, seen, stack",
          "order", "comes before"),
    Wrong("cross_entropy", "a small number under the logarithm",
          "    return (log_sums",
          "    p = np.exp(shifted) / np.exp(shifted).sum(1, keepdims=True)\n"
          "    return -np.log(p[np.arange(len(targets)), targets] + 1e-9).sum() / count\n"
          "    return (log_sums", "large logits", "the loss is"),
    Wrong("adam", "the square of the average", "(1 - b2) * g * g", "(1 - b2) * m * m", "first step",
          "not the square of m"),
    Wrong("adam", "decay for both", "b2 * v", "b1 * v", "later steps", "should be"),
    Wrong("adam", "one decay", "b2 * v + (1 - b2)", "b1 * v + (1 - b1)", "later steps",
          "and here by b1"),
    Wrong("central", "rank 0 alone knows", "        comm.recv(array, 0)\n",
          "        comm.recv(np.empty_like(array), 0)\n", "result", "unchanged"),
    Wrong("halving_doubling", "overlapping halves", "(low, middle), (middle, high)",
          "(low, middle), (low, high)", "result", "agree on dtype and length"),
    Wrong("uneven_shards", "by an even share", "/ total[-1]", "/ (len(x) * comm.size)",
          "uneven shards", "rank"),
    Wrong("buckets", "nobody waits", "            future.wait()\n", "", "result", "the sum"),
    Wrong("buckets", "each rank its own limit", "= comm, all_reduce, limit",
          "= comm, all_reduce, limit * (1 + comm.rank)", "same order", "agree on dtype and length"),
    Wrong("zero1", "a new state in each step", "        self.t += 1\n",
          "        self.t += 1\n        self.m[...] = self.v[...] = 0\n", "result", "serial"),
    Wrong("zero2", "the average of microbatches", "self.grad, self.m", "self.grad / 3, self.m",
          "result", "divided by the number of microbatches"),
    Wrong("top_k", "the rest of the gradient alone", "        self.residual = corrected\n",
          "        self.residual = grad.copy()\n", "error feedback", "older rests are lost"),
    Wrong("stale_server", "in the order of waiting", "return free", "return free[::-1]",
          "nobody waits in vain", "should return"),
    Wrong("one_f_one_b", "the newest first", "range(warm_up)]", "reversed(range(warm_up))]",
          "order", "in the order"),
    Wrong("tensor_parallel", "mask of the gradient", "np.where(h > 0,", "np.where(grad @ c.T > 0,",
          "own gradients", "should be"),
    Wrong("checkpoint", "the arrays without a checksum", "hashlib.sha256(content)",
          "hashlib.sha256(content[:100])", "damage", "is loaded"),
    Wrong("checkpoint", "opened by pathlib, in place",
          'with open(str(path) + ".new", "wb") as file:\n'
          "        file.write(hashlib.sha256(content).digest())\n"
          "        file.write(content)\n        file.flush()\n"
          "        os.fsync(file.fileno())\n"
          '    os.replace(str(path) + ".new", path)',
          "import pathlib\n    pathlib.Path(path).write_bytes(\n"
          "        hashlib.sha256(content).digest() + content)\n    os.sync()\n",
          "killed", "nothing can be loaded"),
    # Mistakes that passed, or got a message about something else, until a walk through the course
    Wrong("ring", "half the rounds, not half the digits",
          "    for round in range(p - 1):\n        comm.sendrecv(parts[(rank - round + 1)",
          "    for round in range(0):\n        comm.sendrecv(parts[(rank - round + 1)",
          "bytes", "the ranks send"),
    Wrong("adam", "eps before the correction", "(np.sqrt(v / (1 - b2**t)) + eps)",
          "((np.sqrt(v) + eps) / np.sqrt(1 - b2**t))", "first step", "after the correction"),
    Wrong("adam", "a step ahead", "    m[...]", "    t = t + 1\n    m[...]", "first step",
          "one step more than the t"),
    Wrong("backward_order", "a higher limit", "    noted, seen, stack",
          "    import sys\n    sys.setrecursionlimit(10**6)\n"
          "    def visit(name):\n        for parent in parents[name]:\n"
          "            if parent not in seen:\n"
          "                seen.add(parent)\n                visit(parent)\n"
          "        noted.append(name)\n"
          "    noted, seen = [], {root}\n    visit(root)\n    return noted[::-1]\n"
          "    noted, seen, stack", "a long chain", "a higher limit only moves"),
    Wrong("backward_order", "along every path", "    noted, seen, stack",
          "    order, left = [], [root]\n    while left:\n        order.append(left.pop())\n"
          "        left += parents[order[-1]]\n"
          "    return list(dict.fromkeys(order[::-1]))[::-1]\n    noted, seen, stack",
          "each once", "along each path"),
    Wrong("backward_order", "the graph is taken apart", "    noted, seen, stack",
          "    noted, left = [], [root]\n    while left:\n        if parents[left[-1]]:\n"
          "            left.append(parents[left[-1]].pop())\n"
          "        elif (name := left.pop()) not in noted:\n            noted.append(name)\n"
          "    return noted[::-1]\n    noted, seen, stack",
          "graph untouched", "parents was changed"),
    Wrong("uneven_shards", "samples are gathered", "    total = ",
          "    rows = np.zeros((comm.size, 64, 6))\n"
          "    rows[comm.rank, : len(y)] = np.column_stack([x, y, np.ones(len(y))])\n"
          "    all_reduce(comm, rows)\n    rows = rows[rows[..., -1] == 1]\n"
          "    x, y = rows[:, :-2], rows[:, -2]\n    return x.T @ (x @ w - y) / len(y)\n"
          "    total = ", "one all-reduce", "samples stay on their rank"),
    Wrong("uneven_shards", "the targets become errors", "    total = np.append(x.T @ (x @ w - y)",
          "    y -= x @ w\n    total = np.append(-(x.T @ y)", "inputs untouched", "y was changed"),
    Wrong("tensor_parallel", "the gradient is scaled on the way", "    grad_h = np.where",
          "    grad *= 1.5\n    c = c / 1.5\n    grad_h = np.where",
          "inputs untouched", "grad was changed"),
    Wrong("one_f_one_b", "words in place of pairs", "    return steps +",
          "    return [f'F{number}' for number in range(microbatches)]\n    return steps +",
          "complete", "a step is a pair"),
    Wrong("buckets", "the mean", "+ grad.size]\n", "+ grad.size] / self.comm.size\n", "result",
          "is the mean of the ranks"),
    Wrong("broadcast_backward", "a millionth more", "    return grad", "    return 1.000001 * grad",
          "both, and neither", "1.000001 times"),
    Wrong("checkpoint", "a pickle of an old form behind its checksum",
          "    content += b\"\".join(np.ascontiguousarray(array).tobytes() for array in arrays"
          ".values())\n",
          "    import pickle\n    content = pickle.dumps([step, {n: (a.tolist(), str(a.dtype), "
          "a.shape) for n, a in arrays.items()}], 2)\n", "no pickle", "save writes a pickle"),
    Wrong("checkpoint", "evaluated", "    found = json.loads(header)", "    found = eval(header)",
          "no pickle", "by eval or exec"),
    Wrong("matmul_backward", "the first b for ever", "    return grad @ b.T",
          "    global first\n    first = globals().get('first', b)\n"
          "    b = first if first.shape == b.shape else b\n    return grad @ b.T",
          "gradient of a", "from one call to the next"),
    Wrong("stale_server", "the slowest of the first four", "min(self.steps)", "min(self.steps[:4])",
          "bound", "ahead, and the bound is|which was not waiting"),
    Wrong("adam", "the last of an odd number is left out", "    m[...]",
          "    w, g, m, v = (one[: len(one) // 2 * 2] for one in (w, g, m, v))\n    m[...]",
          "first step", "w[4] is"),
    Wrong("buckets", "a number too many", ">= self.limit", "> self.limit", "number of buckets",
          "as soon as it has"),
    Wrong("matmul_backward", "in the other order", "grad @ b.T, a.T @ grad",
          "a.T @ grad, grad @ b.T", "gradient of a", "are exchanged"),
    Wrong("cross_entropy", "the largest of all rows", "logits.max(axis=1, keepdims=True)\n    log",
          "logits.max()\n    log", "large logits", "logit of each row"),
    Wrong("uneven_shards", "by p times the own samples", "/ total[-1]",
          "/ max(1, len(x)) / comm.size", "uneven shards", "adding up the counts"),
    Wrong("zero1", "own gradient, although it sends", "own = self.reduce_scatter(self.comm, grad)",
          "self.reduce_scatter(self.comm, grad.copy())\n        own = "
          "np.array_split(grad, self.comm.size)[self.comm.rank]", "result", "own gradient alone"),
    Wrong("zero1", "t from 0", "self.m, self.v, self.t)", "self.m, self.v, self.t - 1)", "result",
          "t is 1 in the first step"),
    Wrong("zero2", "a whole buffer kept",
          "        self.grad += self.reduce_scatter(self.comm, grad)",
          "        self.whole = grad.copy()\n"
          "        self.grad += self.reduce_scatter(self.comm, self.whole)", "held",
          "nor an array as long as one"),
    Wrong("zero2", "whole until the step, held",
          "        self.grad += self.reduce_scatter(self.comm, grad)\n\n    def step(self):\n",
          "        self.all = getattr(self, 'all', 0) + grad\n\n    def step(self):\n"
          "        self.grad += self.reduce_scatter(self.comm, self.all)\n        self.all = 0\n",
          "held", "keep no whole gradient"),
    Wrong("top_k", "overwritten", "total[where] += others", "total[where] = others", "first step",
          "are to be added"),
    Wrong("top_k", "by the gradient", "-np.abs(corrected)", "-np.abs(grad)", "error feedback",
          "not of the gradient"),
    Wrong("tensor_parallel", "no slope", "np.where(h > 0,", "np.where(h > -1,", "own gradients",
          "0 where h is 0"),
    Wrong("stale_server", "who has not waited", "        return free",
          "        return list(range(len(self.steps)))", "bound", "which was not waiting"),
    Wrong("checkpoint", "synced before it is flushed", "        file.flush()\n", "", "on the disk",
          "in a buffer"),
    Wrong("checkpoint", "synced after it has its name",
          "        os.fsync(file.fileno())\n    os.replace(str(path) + \".new\", path)",
          "    os.replace(str(path) + \".new\", path)\n"
          "    with open(path, 'rb+') as file:\n        os.fsync(file.fileno())", "on the disk",
          "after the file has got its name"),
    Wrong("checkpoint", "copied over the old one", "    os.replace(",
          "    import shutil\n    shutil.copyfile(str(path) + '.new', path)\n"
          "    os.remove(str(path) + '.new')\n    return\n    os.replace(", "killed",
          "nothing can be loaded"),
    Wrong("checkpoint", "another file is synced", "    os.replace(",
          "    import shutil\n    shutil.copyfile(str(path) + '.new', path)\n"
          "    os.remove(str(path) + '.new')\n    return\n    os.replace(", "on the disk",
          "another file"),
    Wrong("checkpoint", "written by an array, in place",
          'with open(str(path) + ".new", "wb") as file:\n'
          "        file.write(hashlib.sha256(content).digest())\n"
          "        file.write(content)\n        file.flush()\n"
          "        os.fsync(file.fileno())\n"
          '    os.replace(str(path) + ".new", path)',
          'with open(path, "wb") as file:\n'
          "        np.frombuffer(hashlib.sha256(content).digest() + content, 'u1').tofile(file)\n"
          "        os.fsync(file.fileno())\n", "killed", "nothing can be loaded"),
    Wrong("checkpoint", "a sum as the checksum", "hashlib.sha256(content).digest()",
          "sum(content).to_bytes(32, 'little')", "damage", "two bytes exchanged"),
    Wrong("checkpoint", "a pickle behind a checksum",
          'content = json.dumps({"step": step, "arrays": listed}).encode() + b"\\n"\n',
          "import pickle\n    content = pickle.dumps([step, listed]) + b'\\n'\n", "no pickle",
          "save writes a pickle"),
]  # fmt: skip
