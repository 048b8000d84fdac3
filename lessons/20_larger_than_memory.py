# %% [markdown]
# # 20. Data larger than memory
#
# The models so far were trained on data that fits into memory. Real data does not: it is on a disk,
# or on another machine, and reading takes time. Two questions: how does each rank read only what it
# needs, and must it wait for it?
#
# About 30 minutes. At the end you know how ranks read their parts of one file, what reading ahead
# hides and what it cannot, and how to measure the waiting.
#
#     python lessons/20_larger_than_memory.py
#     minidist run -n 2 lessons/20_larger_than_memory.py
#
# You need: lesson 7.

# %%
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from minidist import LocalWorld, launch
from minidist.comm import first_process, launched_size, print_once
from minidist.data import (
    Batches,
    Dataset,
    Prefetch,
    open_tokens,
    shakespeare_text,
    token_windows,
    write_tokens,
)
from minidist.models import gpt
from minidist.nn import CrossEntropy
from minidist.optim import Adam
from minidist.parallel import DataParallel
from minidist.plots import save

FILE = Path("out/lessons/20_tokens.npy")
LENGTH, BATCH, STEPS = 32, 16, 8

# %% [markdown]
# ## A file that is never read as a whole
#
# We write the text of Shakespeare's plays as a file of tokens, piece by piece. (Take a terabyte of
# text in its place, and nothing below changes.) `open_tokens` *maps* the file: it looks like an
# array, and the operating system reads a page of it when somebody looks at it.

# %%
text = shakespeare_text()
letters = sorted(set(text))
number = {letter: index for index, letter in enumerate(letters)}


def pieces():
    for start in range(0, len(text), 50_000):
        yield np.array([number[letter] for letter in text[start : start + 50_000]])


def write(comm):
    """Rank 0 writes; the others must not open a file that is half written."""
    if comm.rank == 0:
        FILE.parent.mkdir(parents=True, exist_ok=True)
        count = write_tokens(FILE, pieces(), classes=len(letters))
        print(f"{count:,} tokens, {FILE.stat().st_size:,} bytes: one byte a token")
    comm.barrier()


launch(write, 4)

# %% [markdown]
#
# **Question 1.** A batch has 16 windows of 33 letters, and there are 4 ranks. How many bytes of the
# file must a rank read in a step? And how many if every rank read the whole batch and took a part?
#
# `Batches` makes a batch of *indices*: 16 numbers, the same on all ranks, drawn without a message.
# A method takes its shard of the indices, and only then reads. To see what is read, we put a
# counter in front of the file. It is also slow, like a disk far away.


# %%
class FarAway:
    """Windows of a token file. Reading a whole batch takes ``seconds``; what is read is counted."""

    def __init__(self, windows, seconds):
        self.windows, self.seconds = windows, seconds
        self.shape, self.dtype, self.rows, self.slept = windows.shape, windows.dtype, 0, 0.0

    def __len__(self):
        return len(self.windows)

    def __getitem__(self, indices):
        seconds = self.seconds * len(indices) / BATCH
        time.sleep(seconds)
        self.rows, self.slept = self.rows + len(indices), self.slept + seconds
        return self.windows[indices]


def data(seconds=0.0):
    windows = token_windows("plays", open_tokens(FILE), LENGTH, len(letters))
    far = FarAway(windows.inputs, seconds)
    return Dataset("plays, far away", far, windows.targets, len(letters)), far


def model():
    return gpt(len(letters), LENGTH, width=48, layers=2, heads=4)


def train(comm, seconds, ahead):
    """Losses; rows read in a step; and seconds of a step: in all, and waiting for data."""
    dataset, far = data(seconds)
    method = DataParallel(model(), CrossEntropy(), Adam(1e-3), comm)
    batches = Batches(dataset, BATCH, seed=0)
    stream = Prefetch(batches, comm.rank, comm.size) if ahead else batches
    losses, waited, taken = [], [], []
    for step in range(STEPS):
        begin, before = time.perf_counter(), stream.waited if ahead else far.slept
        losses.append(method.step(stream[step]))
        taken.append(time.perf_counter() - begin)
        waited.append((stream.waited if ahead else far.slept) - before)
    rows = far.rows / STEPS
    if ahead:
        stream.close()
    return losses, rows, waited, taken


losses, rows, *_ = launch(lambda comm: train(comm, 0.0, ahead=True), 4, LocalWorld())[1]
print_once(f"4 simulated ranks: rank 1 reads {rows:.1f} windows a step, loss {losses[-1]:.4f}")

# %% [markdown]
# Four windows are its shard. The fifth is the first one of the batch: by that sample the ranks
# check that all have the same batch. The half is the batch after the last, which was read ahead and
# never asked for. So a rank reads 5.5 windows a step, and not 16.
#
# ## Waiting, measured
#
# One rank computes a step in C seconds, and its samples are read in R.
#
# **Question 2.** How long does a step take if it reads and then computes? And if a thread reads the
# next samples while this step computes? What if R is larger than C?

# %%
alone = launch(lambda comm: train(comm, 0.0, ahead=False), 1, LocalWorld())[0]
compute = float(np.median(alone[3][1:]))
found = {}
for share in (0.5, 1.5):
    for ahead in (False, True):
        _, _, waited, taken = launch(
            lambda comm, s=share * compute, a=ahead: train(comm, s, a), 1, LocalWorld()
        )[0]
        found[share, ahead] = np.median(waited[1:]), np.median(taken[1:])
        print_once(
            f"a read takes {share} times the computing, "
            f"{'ahead' if ahead else 'when needed'}: a step takes "
            f"{found[share, ahead][1] / compute:.1f} times the computing, "
            f"{found[share, ahead][0] / compute:.1f} of them waiting"
        )

# %% [markdown]
# Reading ahead hides what is shorter than the computing. A disk that is too slow stays too slow:
# the step takes as long as the read. (Here the thread also shares Python with the computing, so
# your numbers will not be exactly 1.0 and 1.5.)
#
# ## On real ranks
#
# The next lines run on the ranks that there are: four simulated ones under plain `python`, real
# processes under `minidist run`. Each opens the same file, and reads its own part.
#
# **Question 3.** Must the loss depend on whether the data was read ahead?

# %%
plain = launch(lambda comm: train(comm, 0.0, ahead=False), 4)
ahead = launch(lambda comm: train(comm, 0.0, ahead=True), 4)
kind = "real" if launched_size() else "simulated"
same = all(a[0] == b[0] for a, b in zip(plain, ahead, strict=True))
print_once(
    f"{len(ahead)} {kind} ranks: loss {ahead[0][0][-1]:.4f}, "
    f"{'the same' if same else 'NOT the same'} with and without reading ahead"
)

# %%
if first_process():
    figure, axes = plt.subplots(figsize=(9, 3), layout="constrained")
    labels = []
    for row, ((share, is_ahead), (waited, taken)) in enumerate(found.items()):
        axes.barh(row, waited / compute, color="#d9822b", label="waiting" if row == 0 else None)
        axes.barh(
            row, (taken - waited) / compute, left=waited / compute, color="#4c9f70",
            label="computing" if row == 0 else None,
        )  # fmt: skip
        labels.append(f"read {share}, {'ahead' if is_ahead else 'when needed'}")
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlabel("a step, in units of the computing alone")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    axes.spines[["top", "right"]].set_visible(False)
    print(f"picture: {save(figure, 'out/lessons/20_larger_than_memory.png')}")

# %% [markdown]
# ## What to take away
#
# 1. A batch is a list of indices. So each rank can read its own part, and needs nothing from the
#    others.
# 2. Map a file; do not load it. Write it in pieces.
# 3. Read the next batch while this one computes: a step takes max(C, R) in place of C + R.
# 4. Measure the waiting. If it is not zero with one batch ahead, two will not help: the reading is
#    slower than the computing, on average too.
#
# **Try it:**
#
# 1. Give `Prefetch` `ahead=4`, and let every fifth read take four times as long. When do more
#    batches ahead help?
# 2. How many windows does a rank read in a step if there are 8 ranks? Predict it, then run it.
#
# <details><summary>Answers</summary>
#
# 1. When reads are *uneven*. If they are faster than the computing on average, batches that wait in
#    memory cover the slow ones; one batch ahead covers a delay of one step. With reads of half the
#    computing, 4 batches ahead reduced the waiting from 0.16 to 0.05 of the computing. With reads
#    as long as the computing they are slower on average, and more batches hardly help.
# 2. 3.25: its shard of two, the first sample of the batch, and a quarter of a window read ahead and
#    never asked for (two in eight steps).
#
# </details>
