# %% [markdown]
# # 12. When things break
#
# The more ranks, the more often one of them fails: if each fails once in three years, a thousand of
# them fail about once a day. Training that takes weeks must say why it stopped, and go on from
# where it was.
#
# About 40 minutes. At the end you know what each kind of failure looks like and who notices it,
# what a checkpoint must have and how it is written safely, and how often to write one.
#
# You need: lesson 8. Run it with `python lessons/12_when_things_break.py`.

# %%
import shutil
import tempfile
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from minidist import LocalWorld, Machine, launch
from minidist.checkpoint import Checkpoints, expected_goodput, simulate, young_interval
from minidist.collectives import all_reduce
from minidist.comm import CommError, Deadlock, RankLost, first_process, launched_size, print_once
from minidist.data import Batches, fashion_mnist
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import SGD, AdamW
from minidist.parallel import DataParallel, Zero1, Zero3
from minidist.parallel.guards import NotFinite
from minidist.plots import save
from minidist.plots.goodput import draw_goodput

training, _ = fashion_mnist()

# %% [markdown]
# ## A hang
#
# **Question 1.** Two ranks both wait to receive, and neither has sent. Who can notice that no
# message will ever come?


# %%
def refused(function, ranks=2):
    """What minidist says about it."""
    try:
        launch(function, ranks, LocalWorld())
    except (CommError, Deadlock, NotFinite) as error:
        print_once(type(error).__name__, "\n", error, sep="")


refused(lambda comm: comm.recv(np.zeros(4), 1 - comm.rank))

# %% [markdown]
# The local world knows all ranks, so it notices at once, and says for each what it waits for, and
# where. On real ranks nobody can know, so a watchdog ends the job after `MINIDIST_TIMEOUT` seconds.
#
# ## A mismatch
#
# **Question 2.** In an all-reduce one rank adds and the other takes the maximum. An MPI library
# does not compare what they ask for. What would the ranks have at the end?

# %%
refused(lambda comm: all_reduce(comm, np.ones(4), op=("sum", "max")[comm.rank]))

# %% [markdown]
# Each its own wrong numbers, and no error. So ranks compare what they call: always in the local
# world, and with `MINIDIST_DEBUG=1` under MPI. Model, optimizer and seed are compared when a method
# is made: with seeds of their own, ranks would train different replicas, and nothing would fail.
#
# ## A flipped bit, and a loss that is no number
#
# **Question 3.** A bit flips in the memory of one of three ranks, so its replica is no longer like
# the others. How can the ranks find out, without sending all parameters?


# %%
def flipped_bit(comm):
    method = DataParallel(mlp((784, 16, 10)), CrossEntropy(), SGD(0.1), comm)
    method.guard(replicas_every=1)
    for step in range(3):
        if comm.rank == 1 and step == 1:
            weight = method.model.named_parameters()["1.weight"].data
            weight.reshape(-1).view(np.uint32)[5] ^= 1
        method.step(Batches(training, 64)[step])


refused(flipped_bit, ranks=3)

# %% [markdown]
# `replicas_every` lets each rank send a *hash* of each parameter, a few bytes that change if any
# bit does. Two of three agree, so the third is named.
#
# A loss that is NaN ("not a number") is NaN on every rank: all raise in the same step.
# `guard(not_finite="skip")` leaves such a step out instead, on all ranks or on none.


# %%
def too_fast(comm):
    method = DataParallel(mlp((784, 16, 10)), CrossEntropy(), SGD(1e30), comm)
    with np.errstate(all="ignore"):
        for step in range(10):
            method.step(Batches(training, 64)[step])


refused(too_fast)

# %% [markdown]
# ## A kill
#
# A killed rank says nothing. `minidist run` has a connection to every rank, so it knows which ended
# first, what the others did, and that the job has not finished, whatever the status says:
#
#     $ minidist run -n 4 --restarts 3 lessons/scripts/train.py
#     minidist run: the job failed after 2.1 s, rank 1 first, process 4711 on machine0
#     rank 1 ended without an exception and without having finished: it was killed (perhaps for want
#     of memory), crashed in a library, or called os._exit
#     What the other ranks did: ...
#     minidist run: restart 1 of 3, with 4 ranks
#
# Every other fault, under two MPI libraries, is measured in `docs/faults.md`.
#
# ## Nothing is lost
#
# **Question 4.** What must be in a checkpoint, so that training goes on as if nothing had happened?
# And what if the job is killed while it writes one?

# %%
folder = Path(tempfile.mkdtemp())
WIDTHS, STEPS = (784, 64, 10), 30


def train(comm, method=Zero3, steps=STEPS, where=folder):
    batches = Batches(training, size=128, seed=0)
    model = method(mlp(WIDTHS), CrossEntropy(), AdamW(1e-3), comm)
    losses = {}
    with Checkpoints(where, model, batches, keep=2) as checkpoints:
        for step in range(checkpoints.resume(), steps):
            losses[step] = model.step(batches[step])
            if (step + 1) % 10 == 0:
                checkpoints.save(step + 1)
    return losses


whole = LocalWorld()
unbroken = launch(partial(train, where=Path(tempfile.mkdtemp())), 4, whole)[0]

# %% [markdown]
# *All* that training needs: parameters, the optimizer's state, the number of the step. Each rank
# writes what it holds. Rank 0 then writes a *manifest*, which says for every parameter which file
# has which part of it. A checkpoint is written under another name, and renamed when it is whole: a
# kill in between leaves the one before untouched. And everything has a hash. Disks are not perfect,
# either: if a file does not fit its hash, it is passed over, and training goes on from the
# checkpoint before.
#
# **Question 5.** A checkpoint is saved every 10 steps of 30. Rank 2 crashes at 85 % of the virtual
# time. From which step must the run go on?

# %%
try:
    launch(train, 4, LocalWorld(Machine(crashes={2: 0.85 * whole.seconds})))
except RankLost as error:
    print_once(f"the job ends: {type(error).__name__}: rank {error.rank} has crashed")
print_once("in the folder:", *sorted(path.name for path in folder.iterdir()))

# %% [markdown]
# The same program, started again, goes on from step 20. Are the losses those of the run that nobody
# interrupted, to the last bit?

# %%
again = launch(train, 4, LocalWorld())[0]
same = [*again.values()] == [*unbroken.values()][20:]
print_once(f"steps {min(again)} to {max(again)}, equal: {same}")

# %% [markdown]
# ## On real ranks: the others go on
#
# So far every rank was simulated. The next lines run on the ranks that there are: four simulated
# ones under plain `python`, and real processes that send real messages under
#
#     minidist run -n 3 lessons/12_when_things_break.py
#
# All ranks stop after 25 steps. Then the last one is not used again (unless it is the only one).
#
# **Question 6.** `Zero3` gave the last rank a part of the parameters that no other rank has. Can
# the others go on without it, and by another method?

# %%
shared = Path("out/lessons/12_checkpoints")  # on a disk that all ranks see


def on_these_ranks(comm):
    if comm.rank == 0:
        shutil.rmtree(shared, ignore_errors=True)
    comm.barrier()
    expected = train(comm, where=shared / "unbroken")
    train(comm, steps=25, where=shared / "stopped")
    remaining = range(max(1, comm.size - 1))
    if comm.rank not in remaining:
        return None
    got = train(comm.group(remaining), Zero1, where=shared / "stopped")
    return min(got), max(abs(got[step] - expected[step]) for step in got)


found = launch(on_these_ranks, 4)
kind = "real" if launched_size() else "simulated"
step, gap = found[0]
print_once(f"{len(found)} {kind} ranks stopped, {max(1, len(found) - 1)} go on from step {step}: "
           f"losses within {gap:.0e}")  # fmt: skip

# %% [markdown]
# They can. The lost rank's file is still there, and each of the others reads from it what it now
# has to hold. Names and shapes in the manifest are those of serial training, so neither the number
# of ranks nor the method has to be the same. Sums are added in another order: the losses differ by
# rounding. If a rank is killed, `minidist run --restarts 1 --min-ranks 2` starts the others again.
#
# ## How often?
#
# Saving takes δ seconds, and a crash comes every M seconds on average. If we save often, we lose
# time by saving; if rarely, all steps since the last checkpoint are lost with each crash. *Goodput*
# is the share of time that is kept.
#
# **Question 7.** Saving takes 20 s, and a crash comes every 1000 s, about a quarter of an hour.
# Which of these intervals is the best: 40, 80, 200, 500 or 1200 s?
#
# The simulator runs a job of two ranks with random crashes; the formula is Daly's (2006).

# %%
DELTA, M, R, STEP = 20.0, 1000.0, 30.0, 20.0
every = [2, 4, 10, 25, 60]
runs = {k: simulate(2500, k, STEP, DELTA, M, R, seed=1) for k in every}
for k, run in runs.items():
    formula = expected_goodput(k * STEP, DELTA, M, R)
    print_once(f"every {k * STEP:5.0f} s: {run.crashes:3} crashes, goodput {run.goodput:.2f}, "
               f"by the formula {formula:.2f}")  # fmt: skip
print_once(f"Young's interval: {young_interval(DELTA, M):.0f} s")
figure, axes = plt.subplots(figsize=(7, 4))
draw_goodput(axes, {k * STEP: run.goodput for k, run in runs.items()}, DELTA, M, R)
if first_process():
    print("picture:", save(figure, "out/lessons/12_when_things_break.png"))

# %% [markdown]
# Young (1974) found that the best interval is about √(2δM): here 200 s. The curve is flat at the
# top: a factor of two in the interval costs little. Far away from it, much.
#
# ## What to take away
#
# - A checkpoint is whole or it is not there: write it under another name, fsync, rename.
# - Verify the hashes of a checkpoint before you use it; keep the one before.
# - Serial names and shapes in the manifest make ranks and methods exchangeable.
# - Save about every √(2δM) seconds.
#
# `lessons/scripts/train.py` is a program that does all of this.
#
# **Try it:**
#
# 1. Let `too_fast` call `method.guard(not_finite="skip")`. What is the loss after ten steps?
# 2. Set `WIDTHS = (784, 65, 10)` and start the training again. What is said?
# 3. Flip a bit of the newest checkpoint, and start the training again. Which checkpoint is loaded?
#
#        file = next(max(folder.glob("save-*")).glob("rank-*"))
#        data = bytearray(file.read_bytes())
#        data[-1000] ^= 1
#        file.write_bytes(data)
#
# 4. Each rank writes only its shard, while the next steps run, so δ falls from 20 s to 5. What are
#    the best interval and its goodput now?
#
# <details><summary>Answers</summary>
#
# 1. NaN: skipping is no remedy here. The first step is finite, but so long that the parameters are
#    about 1e28 after it, and every later loss is NaN. Lower the rate.
# 2. It is refused, although the hash fits: "parameters/1.weight is (784, 64) in the state and
#    (784, 65) in the method".
# 3. The one before, with a warning that says which file was changed.
# 4. √(2 · 5 · 1000) = 100 s, half as long; and the goodput rises from 79 to 88 %.
#
# </details>
#
# **Marked exercise:** `minidist exercise start checkpoint`.
