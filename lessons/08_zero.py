# %% [markdown]
# # 8. ZeRO: no rank needs to store everything
#
# Data parallel training with Adam keeps, on each rank, four numbers for each parameter: the
# parameter, its gradient, and Adam's two. On p ranks all of this is stored p times. ZeRO stores
# each part on one rank only, its owner.
#
# | stage | each rank keeps only its 1/p of |
# |---|---|
# | 1 | the optimizer's state |
# | 2 | and the gradients |
# | 3 | and the parameters |
#
# About 30 minutes. At the end you know what each stage stores and sends, and why the first two are
# nearly free.
#
# You need: lessons 3 and 7. Run it with `python lessons/08_zero.py`.

# %%
import matplotlib.pyplot as plt
import numpy as np

from minidist import LocalWorld, Machine, launch
from minidist.collectives import ring
from minidist.colours import MEMORY
from minidist.comm import first_process, launched_size, print_once
from minidist.comm.timeline import draw_timeline
from minidist.data import Batches, fashion_mnist
from minidist.models import gpt, mlp
from minidist.nn import CrossEntropy
from minidist.optim import Adam
from minidist.parallel import DataParallel, Serial, Zero1, Zero2, Zero3
from minidist.parallel.declared import MIXED, held
from minidist.plots import save

training, _ = fashion_mnist()
WIDTHS = (784, *[256] * 12, 10)
STAGES = {"data parallel": DataParallel, "stage 1": Zero1, "stage 2": Zero2, "stage 3": Zero3}

# %% [markdown]
# ## An all-reduce has two halves
#
# *Reduce-scatter* gives each rank the finished sum of one part. *All-gather* gives every part to
# all. Together they are the all-reduce of lesson 6.
#
# **Question 1.** Three ranks begin with six numbers each: all 1, all 10, all 100. What does rank 1
# have after the reduce-scatter, and after the all-gather?


# %%
def two_halves(comm):
    array = np.full(6, 10.0**comm.rank)
    parts = ring.chunks(array.size, comm.size)
    ring.reduce_scatter(comm, array, parts=parts)
    mine = array[parts[comm.rank]].copy()
    ring.all_gather(comm, array, parts)
    return mine, array


for rank, (mine, whole) in enumerate(launch(two_halves, 3, LocalWorld())):
    print_once(f"rank {rank}: after reduce-scatter it owns {mine}, after all-gather has {whole}")

# %% [markdown]
# ZeRO works between the two halves: the rank that has the finished sum of a part steps the
# optimizer for this part, alone. Then the all-gather brings the new parameters to all, in place of
# gradients.
#
# ## The same training
#
# Each stage must give the parameters that serial training gives. We also count what is sent. Psi
# (Ψ) is the number of parameters, p the number of ranks. Data parallel sends 2Ψ(p − 1)/p elements a
# step, as a ring all-reduce does. In stage 3 no rank has whole parameters: each layer's are
# gathered when it is computed, in the forward and again in the backward.
#
# **Question 2.** How many times Ψ(p − 1)/p do the stages 1, 2 and 3 send?


# %%
def train(comm, build, steps=5):
    """Losses, bytes sent a step, bytes held, parameters."""
    before = comm.trace.sent.nbytes
    method = build(mlp(WIDTHS), CrossEntropy(), Adam(1e-3), comm)
    batches = Batches(training, 128, seed=0)
    losses = [method.step(batches[step]) for step in range(steps)]
    sent = (comm.trace.sent.nbytes - before) / steps
    arrays = [array for arrays in method.arrays().values() for array in arrays]
    return losses, sent, sum(array.nbytes for array in arrays), method.parameters()


(expected, _, _, reference), *_ = launch(lambda comm: train(comm, Serial), 1, LocalWorld())
psi = sum(parameter.size for parameter in mlp(WIDTHS).parameters())
print_once(f"{psi:,} parameters; 4 ranks")
for name, build in STAGES.items():
    results = launch(lambda comm, b=build: train(comm, b), 4, LocalWorld())
    *_, parameters = results[0]
    gap = max(
        np.abs(parameters[key] - values).max() / np.abs(values).max()
        for key, values in reference.items()
    )
    sent = np.mean([result[1] for result in results])
    print_once(
        f"{name:14} parameter gap to serial {gap:.0e}, "
        f"{sent / (4 * psi * 3 / 4):.3f} × Ψ(p − 1)/p elements sent a step"
    )

# %% [markdown]
# Stages 1 and 2 send no more than data parallel: a reduce-scatter of gradients and an all-gather of
# parameters are as many bytes as an all-reduce of gradients. Stage 3 has one all-gather more.
#
# ## The memory of a rank
#
# Of 16 bytes for each parameter, 4 are the parameter itself, 4 its gradient, and 8 Adam's two
# numbers.
#
# **Question 3.** With many ranks, how many of the 16 are left on each in stage 1? In stage 2? In
# stage 3?
#
# `method.arrays()` lists the arrays of a rank, by kind: this is measured. `method.cost()` gives the
# prediction of the formula. Stages 2 and 3 also work with two *slots*, each as large as the largest
# block, which the blocks use in turn: memory that does not shrink with p.


# %%
def memory(comm, build):
    method = build(mlp(WIDTHS), CrossEntropy(), Adam(1e-3), comm)
    batch = Batches(training, 128)[0]
    method.step(batch)
    held = {kind: sum(a.nbytes for a in arrays) for kind, arrays in method.arrays().items()}
    predicted = method.cost(batch, Machine()).peak_bytes
    return held, {kind: predicted[kind][comm.rank] for kind in held}


RANKS = (1, 2, 4, 8)
bars = {
    name: [launch(lambda comm, b=build: memory(comm, b), p, LocalWorld())[0] for p in RANKS]
    for name, build in STAGES.items()
}
for name, by_ranks in bars.items():
    totals = "  ".join(f"{sum(held.values()) / 1e6:6.2f}" for held, _ in by_ranks)
    equal = all(held == predicted for held, predicted in by_ranks)
    print_once(f"{name:14} MB on 1, 2, 4, 8 ranks: {totals}   formula equal: {equal}")

# %% [markdown]
# A little more than 8 in stage 1, and than 4 in stage 2: what is divided by p tends to 0. In stage
# 3 hardly anything is left of the 16, only the slots.
#
# ## Stage 3 on the clock
#
# A block's parameters must arrive before it can be computed. So while one block computes, the
# parameters of the next one are already being sent (*prefetch*), in the forward and again in the
# backward. Gradients are sent on the same stream.
#
# **Question 4.** Stage 3 sends 1.5 times the bytes of data parallel. Does its step take 1.5 times
# as long on the same network?

# %%
machine = Machine("cluster", latency=10e-6, bandwidth=1e9, reduce_bandwidth=8e9, flops=2e10)


def one_step(comm, build):
    method = build(mlp(WIDTHS), CrossEntropy(), Adam(1e-3), comm)
    batch = Batches(training, 512)[0]
    comm.barrier()
    comm.trace.events.clear()
    start = comm.time()
    method.step(batch)
    return comm.time() - start, comm.trace.events


timelines = {}
for name in ("data parallel", "stage 3"):
    world = LocalWorld(machine, record=True)
    results = launch(lambda comm, b=STAGES[name]: one_step(comm, b), 4, world)
    timelines[name] = [events for *_, events in results]
    seconds = max(result[0] for result in results)
    print_once(f"{name:14} {seconds * 1e3:.2f} ms a step")

# %% [markdown]
# Here it is even faster: `DataParallel` sends everything after the backward, and stage 3 hides a
# part of its messages behind the computing.
#
# ## On real ranks
#
# So far every rank was simulated. The next lines run on the ranks that there are: four simulated
# ones under plain `python`, and real processes that send real messages under
#
#     minidist run -n 2 lessons/08_zero.py
#
# **Question 5.** What does a rank hold with stage 3 if you start it with twice as many ranks?


# %%
found = launch(lambda comm: {name: train(comm, build) for name, build in STAGES.items()}, 4)
kind = "real" if launched_size() else "simulated"
for name, (losses, sent, held_here, _) in found[0].items():
    gap = max(abs(a - b) / b for a, b in zip(losses, expected, strict=True))
    print_once(
        f"{len(found)} {kind} ranks, {name:14} loss gap to serial {gap:.0e}, "
        f"{sent / 1e6:5.2f} MB sent a step, {held_here / 1e6:6.2f} MB held"
    )

# %% [markdown]
# With stage 3, half of what is divided by p. The two slots stay as they are.
#
# ## The same formula at another size
#
# The example of the paper (Rajbhandari et al., arXiv 1910.02054) is a model of 7.5 billion
# parameters on 64 ranks, in mixed precision: 2 bytes for a parameter, 2 for its gradient, and 12
# for Adam's state with a float32 copy. Here is such a GPT. It is declared and not initialised, so
# it takes no memory, and the same formulas hold for it. The paper's table (120, 31.4, 16.6, 1.9 GB)
# has the shards alone; the slots for whole blocks come on top.

# %%
model = gpt(vocabulary=50257, context=1024, width=3072, layers=65, heads=24)
for name, method in STAGES.items():
    by_kind = held(method, model, ranks=64, bytes_of=MIXED)
    slots = by_kind.pop("slots")[0]
    shards = sum(of_ranks[0] for of_ranks in by_kind.values())
    print_once(f"{name:14} {shards / 1e9:6.1f} GB a rank, and {slots / 1e9:.1f} GB of slots")

# %%
if first_process():
    figure = plt.figure(figsize=(12, 9.5))
    rows = figure.add_gridspec(3, 1, height_ratios=[2.2, 1, 1], hspace=0.6)
    axes = figure.add_subplot(rows[0])
    places = [5 * group + index for group in range(len(bars)) for index in range(len(RANKS))]
    bottom = np.zeros(len(places))
    for kind in ("parameters", "gradients", "optimizer"):
        heights = [held[kind] / 1e6 for by_ranks in bars.values() for held, _ in by_ranks]
        axes.bar(places, heights, 0.85, bottom=bottom, color=MEMORY[kind], label=kind)
        bottom += heights
    axes.set_xticks(places, RANKS * len(bars))
    for group, name in enumerate(bars):
        axes.text(group * 5 + 1.5, -3.2, name, ha="center", va="top", fontsize=11)
    axes.set_title("MB that a rank holds, on 1, 2, 4 and 8 ranks", loc="left")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    axes.spines[["top", "right"]].set_visible(False)
    longest = max(e.end for events in timelines.values() for rank in events for e in rank)
    for row, (name, events) in enumerate(timelines.items(), 1):
        axes = figure.add_subplot(rows[row])
        title = f"{name}, one step: forward green, backward blue, messages orange"
        draw_timeline(axes, events, title)
        axes.set_xlim(0, longest * 1e3)
        axes.spines[["top", "right"]].set_visible(False)
    print(f"picture: {save(figure, 'out/lessons/08_zero.png')}")

# %% [markdown]
# ## What to take away
#
# 1. Stages 1 and 2 send no more bytes than data parallel, so there is hardly a reason not to use
#    them.
# 2. Stage 3 sends 1.5 times as much, and stores 1/p of everything, plus two slots.
# 3. Each block of stage 3 needs messages of its own. Prefetch hides them behind the computing, if
#    the latency is low.
#
# **Try it:**
#
# 1. Make one layer of `WIDTHS` very wide: `WIDTHS = (784, *[256] * 5, 4096, *[256] * 6, 10)`. What
#    do the stages hold on 8 ranks now? Why do large models have many equal blocks?
# 2. Set the latency to 1 ms. Which suffers more, data parallel or stage 3?
#
# <details><summary>Answers</summary>
#
# 1. Stage 3 holds 22.6 MB of 46.4, and stage 1 26.1: the two slots are as large as the wide layer,
#    and are not divided. With equal blocks a slot is small beside the whole model.
# 2. Stage 3: 131.7 ms in place of 34.5, and data parallel 44.8 in place of 38.9. Stage 3 sends
#    separate messages for each block, three times a step.
#
# </details>
#
# **Marked exercises:** `minidist exercise start zero1`, `minidist exercise start zero2`.
