"""Right answers of other structures than the solutions: each must have every mark."""

RIGHT = {
    "matmul_backward: sums written out": """
import numpy as np
def backward(grad, a, b):
    return np.einsum("nm,km->nk", grad, b), np.tensordot(a, grad, axes=(0, 0))
""",
    "broadcast_backward: an axis at a time, by a function that calls itself": """
def unbroadcast(grad, shape):
    if grad.ndim > len(shape):
        return unbroadcast(grad.sum(0), shape)
    for axis in range(len(shape)):
        if shape[axis] != grad.shape[axis]:
            return unbroadcast(grad.sum(axis, keepdims=True), shape)
    return grad
""",
    "backward_order: whoever waits for nobody goes next": """
def backward_order(root, parents):
    found, left = {root}, [root]
    while left:
        new = [one for one in parents[left.pop()] if one not in found]
        found.update(new)
        left.extend(new)
    users = dict.fromkeys(found, 0)
    for name in found:
        for parent in set(parents[name]):
            users[parent] += 1
    order = [root]
    for name in order:
        for parent in set(parents[name]):
            users[parent] -= 1
            if not users[parent]:
                order.append(parent)
    return order
""",
    "cross_entropy: a helper, one-hot rows, logaddexp": """
import numpy as np
def log_p(z):
    return z - np.logaddexp.reduce(z, axis=1, keepdims=True)
def loss(logits, targets, count):
    hot = np.eye(logits.shape[1])[targets]
    return -(hot * log_p(logits)).sum() / count
def backward(logits, targets, count):
    return (np.exp(log_p(logits)) - np.eye(logits.shape[1])[targets]) / count
""",
    "adam: the corrections folded into the rate": """
import numpy as np
def adam(w, g, m, v, t, lr, b1, b2, eps):
    m *= b1
    m += (1 - b1) * g
    v *= b2
    np.add(v, (1 - b2) * g**2, out=v)
    root = np.sqrt(1 - b2**t)
    w[:] = w - lr * root / (1 - b1**t) * m / (np.sqrt(v) + eps * root)
""",
    "central: two functions, and whoever comes first is added first": """
import numpy as np
def reduce(comm, array):
    if comm.rank:
        return comm.send(array, 0)
    arrived = np.empty(len(array))
    for _ in range(comm.size - 1):
        comm.recv(arrived)
        np.add(array, arrived, out=array)
def broadcast(comm, array):
    if comm.rank:
        comm.recv(array, 0)
    else:
        for request in [comm.isend(array, peer) for peer in range(1, comm.size)]:
            request.wait()
def all_reduce(comm, array):
    reduce(comm, array)
    broadcast(comm, array)
""",
    "ring: to the left, requests, a new buffer in each round, other cuts": """
import numpy as np
def all_reduce(comm, array):
    p, r, n = comm.size, comm.rank, array.size
    chunk = lambda i: array[i % p * n // p : (i % p + 1) * n // p]
    for k in range(2 * p - 2):
        own, other = chunk(r + k), chunk(r + k + 1)
        arrived = np.empty(other.size)
        waiting = [comm.irecv(arrived, (r + 1) % p), comm.isend(own, (r - 1) % p)]
        for request in waiting:
            request.wait()
        if k < p - 1:
            other[:] = other + arrived
        else:
            other[:] = arrived
""",
    "ring: all that does not divide is in the last chunk; even ranks send first": """
import numpy as np
class Ring:
    def __init__(self, comm, array):
        self.comm, self.p, self.r = comm, comm.size, comm.rank
        own = len(array) // self.p
        cuts = [own * i for i in range(self.p)] + [len(array)]
        self.chunks = [array[a:b] for a, b in zip(cuts, cuts[1:])]
    def exchange(self, out, into):
        calls = [lambda: self.comm.send(out, (self.r + 1) % self.p),
                 lambda: self.comm.recv(into, (self.r - 1) % self.p)]
        for call in calls if self.r % 2 == 0 else calls[::-1]:
            call()
def all_reduce(comm, array):
    ring = Ring(comm, array)
    for i in range(ring.p - 1):
        into = ring.chunks[ring.r - i - 1]
        arrived = np.empty_like(into)
        ring.exchange(ring.chunks[ring.r - i], arrived)
        into += arrived
    for i in range(ring.p - 1):
        ring.exchange(ring.chunks[(ring.r - i + 1) % ring.p], ring.chunks[ring.r - i])
""",
    "halving_doubling: it calls itself, and the nearest rank comes first": """
import numpy as np
def all_reduce(comm, array, distance=1):
    if distance == comm.size:
        return
    peer, half = comm.rank ^ distance, array.size // 2
    low, high = array[:half], array[half:]
    mine, theirs = (high, low) if comm.rank & distance else (low, high)
    arrived = np.empty(mine.size)
    comm.sendrecv(theirs, peer, arrived, peer)
    mine += arrived
    all_reduce(comm, mine, 2 * distance)
    comm.sendrecv(mine, peer, theirs, peer)
""",
    "uneven_shards: a sample at a time, the count in front": """
import numpy as np
def gradient(comm, all_reduce, w, x, y):
    sums = np.zeros(1 + w.size)
    for row, wanted in zip(x, y):
        sums[0] += 1
        sums[1:] += (row @ w - wanted) * row
    all_reduce(comm, sums)
    count, *grad = sums
    return np.array(grad) / count
""",
    "buckets: gradients are copied into a buffer of their own, behind one another": """
import numpy as np
class Buckets:
    def __init__(self, comm, all_reduce, limit):
        self.comm, self.all_reduce, self.limit, self.batches = comm, all_reduce, limit, []
        self.grads, self.filled = [], 0
    def ready(self, grad):
        self.grads.append((grad, self.filled))
        self.filled += len(grad)
        if self.filled >= self.limit:
            self.close()
    def close(self):
        buffer = np.zeros(self.filled)
        for grad, start in self.grads:
            buffer[start : start + len(grad)] = grad
        future = self.comm.spawn(lambda stream: self.all_reduce(stream, buffer))
        self.batches.append((future, buffer, self.grads))
        self.grads, self.filled = [], 0
    def finish(self):
        self.filled and self.close()
        while self.batches:
            future, buffer, grads = self.batches.pop(0)
            future.wait()
            for grad, start in grads:
                grad[:] = buffer[start : start + len(grad)]
""",
    "zero1: state at the first step, a part by its bounds": """
import numpy as np
class Zero1:
    state = None
    def __init__(self, comm, reduce_scatter, all_gather, adam, w):
        self.calls = comm, reduce_scatter, all_gather, adam
        short, more = divmod(len(w), comm.size)
        start = comm.rank * short + min(comm.rank, more)
        self.w, self.own = w, slice(start, start + short + (comm.rank < more))
    def step(self, grad):
        comm, reduce_scatter, all_gather, adam = self.calls
        total = reduce_scatter(comm, grad.copy())
        m, v, t = self.state or (0 * total, 0 * total, 0)
        self.state = m, v, t + 1
        part = self.w[self.own].copy()
        adam(part, total, *self.state)
        self.w[self.own] = part
        all_gather(comm, self.w)
""",
    "zero2: shards in a list, added up at the step": """
import numpy as np
class Zero2:
    def __init__(self, comm, reduce_scatter, all_gather, adam, w):
        self.__dict__.update(locals())
        self.own = np.array_split(w, comm.size)[comm.rank]
        self.m, self.v = np.zeros((2, self.own.size))
        self.t, self.shards = 0, []
    def add(self, grad):
        shard = self.reduce_scatter(self.comm, grad)
        self.shards = [self.shards[0] + shard] if self.shards else [shard]
    def step(self):
        self.t += 1
        self.adam(self.own, self.shards.pop(), self.m, self.v, self.t)
        self.all_gather(self.comm, self.w)
""",
    "top_k: a partition in place of a sort, what was sent subtracted": """
import numpy as np
class TopK:
    def __init__(self, comm, exchange, k, length):
        self.comm, self.exchange, self.k, self.left = comm, exchange, k, np.zeros(length)
    def average(self, grad):
        self.left += grad
        where = np.argpartition(abs(self.left), len(grad) - self.k)[len(grad) - self.k :]
        sent = np.zeros_like(grad)
        sent[where] = self.left[where]
        self.left -= sent
        out = np.zeros_like(grad)
        for values, places in self.exchange(self.comm, sent[where], where):
            np.add.at(out, places, values / self.comm.size)
        return out
""",
    "stale_server: leads are kept, and the waiting looked through": """
class Clock:
    def __init__(self, workers, staleness):
        self.bound, self.done = staleness, {worker: 0 for worker in range(workers)}
        self.blocked = []
    def may_begin(self, worker):
        if all(self.done[worker] <= other + self.bound for other in self.done.values()):
            return True
        self.blocked.append(worker)
        return False
    def finished(self, worker):
        self.done[worker] = self.done[worker] + 1
        before, self.blocked = sorted(self.blocked), []
        return [one for one in before if self.may_begin(one)]
""",
    "one_f_one_b: a generator, a backward whenever enough are in flight": """
def schedule(stage, stages, microbatches):
    f = b = 0
    while b < microbatches:
        if f < microbatches and f - b < stages - stage:
            yield "F", f
            f += 1
        else:
            yield "B", b
            b += 1
""",
    "tensor_parallel: sums in place, arrays of zeros": """
import numpy as np
def forward(comm, all_reduce, x, a, b, c, d):
    h = (x @ a + b).clip(0)
    y = np.zeros((len(x), len(d)))
    y += h @ c
    all_reduce(comm, y)
    y += d
    return y, h
def backward(comm, all_reduce, grad, x, h, a, b, c, d):
    of_c, of_d = np.einsum("nh,no->ho", h, grad), np.ones(len(grad)) @ grad
    masked = (grad @ c.T) * (h > 0)
    of_x = np.einsum("nh,fh->nf", masked, a)
    all_reduce(comm, of_x)
    return [of_x, x.T @ masked, masked.sum(0), of_c, of_d]
""",
    "checkpoint: NumPy's own format in memory, crc, pathlib": """
import io, os, struct, zlib
from pathlib import Path
import numpy as np
def save(path, step, arrays):
    memory, path = io.BytesIO(), Path(path)
    np.savez(memory, step, *arrays.values(), np.array(list(arrays)))
    content = memory.getvalue()
    other = path.with_name(path.name + ".tmp")
    with other.open("wb") as file:
        file.write(struct.pack("<QQ", len(content), zlib.crc32(content)) + content)
        file.flush()
        os.fsync(file.fileno())
    other.replace(path)
def load(path):
    content = Path(path).read_bytes()
    if len(content) < 16 or struct.unpack("<QQ", content[:16]) != (
        len(content) - 16, zlib.crc32(content[16:])
    ):
        raise ValueError("damaged")
    with np.load(io.BytesIO(content[16:]), allow_pickle=False) as found:
        first, *values, names = [found[name] for name in found.files]
    return int(first), dict(zip(names.tolist(), values))
""",
    "checkpoint: a temporary file, an array after another": """
import hashlib, json, os, tempfile
import numpy as np
def save(path, step, arrays):
    file = tempfile.NamedTemporaryFile(dir=os.path.dirname(path), delete=False)
    digest = hashlib.blake2b()
    try:
        with file:
            listed = {name: [a.dtype.str, a.shape] for name, a in arrays.items()}
            for part in [json.dumps([step, listed]).encode() + b"\\n"] + [
                np.ascontiguousarray(a).tobytes() for a in arrays.values()
            ]:
                digest.update(part)
                file.write(part)
            file.write(digest.digest())
            file.flush()
            os.fsync(file.fileno())
        os.rename(file.name, path)
    except Exception:
        os.remove(file.name)
        raise
def load(path):
    content = open(path, "rb").read()
    if hashlib.blake2b(content[:-64]).digest() != content[-64:]:
        raise ValueError("the digest differs")
    header, data = content[:-64].split(b"\\n", 1)
    step, listed = json.loads(header)
    arrays = {}
    for name, (dtype, shape) in listed.items():
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        arrays[name] = np.frombuffer(data[:size], dtype).reshape(shape)
        data = data[size:]
    return step, arrays
""",
}

# Lines of an all_reduce that helps itself, and what the report says of it. ROOT is the package.
CHEATS = {
    "importlib.import_module('minidist.' + 'parallel')": "it imports minidist.parallel",
    "minidist.collectives.ring.all_reduce(comm, array)": "it imports minidist.collectives",
    "importlib.import_module('mpi4py.MPI')": "it imports mpi4py",
    "pkgutil.get_data('minidist.exercises.ring', 'solution.py')": "it imports minidist.exercises",
    "runpy.run_path(ROOT + '/exercises/ring/solution.py')": "it reads minidist/exercises/ring",
    "numpy.fromfile(ROOT + '/collectives/ring.py', dtype='u1')": "it reads minidist/collectives",
    "linecache.getlines(ROOT + '/collectives/ring.py')": "it reads minidist/collectives/ring.py",
    "minidist.__loader__.get_data(ROOT + '/collectives/ring.py')": "it reads minidist/collectives",
    "os.open(ROOT, os.O_RDONLY)": "it reads minidist",
    "os.symlink(ROOT, '/nowhere/x') or open('/nowhere/x/collectives/ring.py')": "it reads minidist",
    "subprocess.run(['true'])": "it starts another program",
    "os.fork()": "it starts another program",
    "comm.send.__func__.__globals__['INNER']": "it uses __globals__",
    "getattr(type(comm).send, '__closure__')": "it uses __closure__",
    "inspect.stack()": "it searches the process",
    "gc.get_objects()": "it searches the process",
    "ctypes.CDLL(None)": "C code",
    "importlib.import_module('tracemalloc').stop()": "it imports tracemalloc",
    "comm.barrier()": "it uses comm.barrier",
    "os.kill(os.getppid(), 0)": "it sends a signal",
    "__import__('sys').setprofile(None)": "it searches the process by sys.setprofile",
    "ctypes.pythonapi.Py_IsInitialized()": "C code",
    "__import__('multiprocessing').get_context('spawn').Process(target=print).start()": "program",
    "setattr(importlib.import_module('json'), 'dumps', print)": "it replaces json.dumps",
    "type(comm).send = lambda *arguments: None": "it replaces minidist.exercises.watch.StudentComm",
}
