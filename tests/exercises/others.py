"""Answers that are built in another way than ours and are as right, and tricks that are none."""

from __future__ import annotations

# (exercise, what is different, the whole answer)
RIGHT = [
    (
        "ring",
        "to the left, isend and irecv, the longer chunks last",
        """
import numpy as np

def all_reduce(comm, array):
    p, me = comm.size, comm.rank
    cuts = [array.size * k // p for k in range(p + 1)]
    chunk = lambda k: array[cuts[k % p]:cuts[k % p + 1]]
    def turn(out, into):
        wait = comm.irecv(into, (me + 1) % p)
        sent = comm.isend(out, (me - 1) % p)
        wait.wait(); sent.wait()
    for k in range(p - 1):
        got = np.empty_like(chunk(me + k + 1))
        turn(chunk(me + k), got)
        chunk(me + k + 1)[:] = chunk(me + k + 1) + got
    for k in range(p - 1):
        turn(chunk(me + p - 1 + k), chunk(me + p + k))
""",
    ),
    (
        "ring",
        "a class, and one buffer with a tag",
        """
import numpy as np

class Ring:
    def __init__(self, comm, array):
        self.comm, self.parts = comm, np.array_split(array, comm.size)
        self.buffer = np.empty(max(map(len, self.parts)))
    def part(self, k):
        return self.parts[k % self.comm.size]
    def shift(self, out, into):
        p, me = self.comm.size, self.comm.rank
        self.comm.sendrecv(self.part(out), (me + 1) % p, into, (me - 1) % p, tag=7)
    def run(self):
        me, p = self.comm.rank, self.comm.size
        for k in range(1, p):
            into = self.buffer[:len(self.part(me - k))]
            self.shift(me - k + 1, into)
            np.add(self.part(me - k), into, out=self.part(me - k))
        for k in range(1, p):
            self.shift(me - k + 2, self.part(me - k + 1))

def all_reduce(comm, array):
    Ring(comm, array).run()
""",
    ),
    (
        "central",
        "from the last rank to the first, without send",
        """
import numpy as np

def all_reduce(comm, array):
    if comm.rank:
        comm.isend(array, 0).wait()
        comm.recv(array, 0)
        return
    got = np.empty_like(array)
    for rank in range(comm.size - 1, 0, -1):
        comm.irecv(got, rank).wait()
        array[:] = np.add(array, got, out=got)
    for wait in [comm.isend(array, rank) for rank in range(1, comm.size)]:
        wait.wait()
""",
    ),
    (
        "halving_doubling",
        "recursion",
        """
import numpy as np

def halve(comm, array, distance):
    if not distance:
        return
    partner, middle = comm.rank ^ distance, len(array) // 2
    mine, theirs = array[:middle], array[middle:]
    if comm.rank & distance:
        mine, theirs = theirs, mine
    got = np.empty_like(mine)
    comm.sendrecv(theirs, partner, got, partner)
    mine += got
    del got
    halve(comm, mine, distance // 2)
    comm.sendrecv(mine, partner, theirs, partner)

def all_reduce(comm, array):
    halve(comm, array, comm.size // 2)
""",
    ),
    (
        "one_f_one_b",
        "by what is done so far",
        """
def schedule(stage, stages, microbatches):
    done, forwards, backwards = [], 0, 0
    while backwards < microbatches:
        ahead = forwards - backwards
        if forwards < microbatches and ahead < min(stages - stage, microbatches):
            done.append(("F", forwards)); forwards += 1
        else:
            done.append(("B", backwards)); backwards += 1
    return done
""",
    ),
    (
        "adam",
        "corrections moved into the rate",
        """
import numpy as np

def adam(w, grad, m, v, t, lr, b1, b2, eps):
    m[:] = b1 * m + (1 - b1) * grad
    v[:] = b2 * v + (1 - b2) * np.square(grad)
    w -= lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
""",
    ),
    (
        "zero1",
        "state in a dictionary, a copy of the part",
        """
import numpy as np

class Zero1:
    def __init__(self, comm, reduce_scatter, all_gather, adam, w):
        lengths = [len(part) for part in np.array_split(w, comm.size)]
        start = sum(lengths[:comm.rank])
        self.mine = slice(start, start + lengths[comm.rank])
        self.of = dict(comm=comm, rs=reduce_scatter, ag=all_gather, adam=adam, w=w)
        self.state = {name: np.zeros(lengths[comm.rank]) for name in "mv"}
        self.steps = 0
    def step(self, grad):
        of = self.of
        self.steps = self.steps + 1
        part = of["w"][self.mine].copy()
        of["adam"](part, of["rs"](of["comm"], grad), self.state["m"], self.state["v"], self.steps)
        of["w"][self.mine] = part
        of["ag"](of["comm"], of["w"])
""",
    ),
    (
        "top_k",
        "argpartition, and the residual in place",
        """
import numpy as np

class TopK:
    def __init__(self, comm, exchange, k, length):
        self.comm, self.exchange, self.k, self.left = comm, exchange, k, np.zeros(length)
    def average(self, grad):
        self.left += grad
        top = np.argpartition(np.abs(self.left), self.left.size - self.k)[self.left.size - self.k:]
        values = self.left[top].copy()
        self.left[top] = 0
        out = np.zeros_like(grad)
        for got, where in self.exchange(self.comm, values, top):
            np.add.at(out, where, got)
        return out / self.comm.size
""",
    ),
]

# (what is tried, the answer to "ring", the words of the mark for own work or of another mark)
TRICKS = [
    (
        "the true comm is looked for among all objects",
        "import gc\n"
        "def all_reduce(comm, array):\n"
        "    [one for one in gc.get_objects() if type(one).__name__ == 'LocalComm'][0].barrier()\n",
        "searches the process by gc.get_objects",
    ),
    (
        "the caller's variables are read",
        "import sys\n"
        "def all_reduce(comm, array):\n"
        "    frame = sys._getframe(1)\n"
        "    array[:] = sum(frame.f_locals.values())\n",
        "searches the process by sys._getframe",
    ),
    (
        "the measuring is stopped",
        "def all_reduce(comm, array):\n    import tracemalloc\n    tracemalloc.stop()\n",
        "with which its memory is measured",
    ),
    (
        "our file is read through a link",
        "import os, tempfile\n"
        "import numpy\n"
        "def all_reduce(comm, array):\n"
        "    import minidist\n"
        "    link = tempfile.mktemp()\n"
        "    os.symlink(os.path.dirname(minidist.__file__), link)\n"
        "    exec(open(link + '/collectives/ring.py').read())\n",
        "reads minidist",
    ),
    (
        "another program is started",
        "import os\ndef all_reduce(comm, array):\n    os.fork()\n",
        "starts another program",
    ),
    (
        "the library behind comm is called",
        "def all_reduce(comm, array):\n    comm.library('Allreduce', array)\n",
        "uses comm.library",
    ),
    (
        "ranks meet in a variable of the module",
        "import numpy as np\n"
        "BOX = {}\n"
        "def all_reduce(comm, array):\n"
        "    BOX[comm.rank] = array.copy()\n"
        "    for _ in range(2 * comm.size - 2):\n"
        "        comm.sendrecv(array[:0], (comm.rank + 1) % comm.size,\n"
        "                      array[:0], (comm.rank - 1) % comm.size)\n"
        "    array[:] = sum(BOX.values())\n",
        "no sum was written",
    ),
]
