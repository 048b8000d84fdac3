# %% [markdown]
# # 8. ZeRO: no rank needs to store everything
#
# Data parallel training with Adam keeps, on each rank, four numbers for each parameter: the
# parameter, its gradient, and Adam's two. On p ranks all of this is stored p times. ZeRO asks for
# each kind: *which rank needs it, and when?* Each part is stored on one rank only, its owner.
#
# | stage | each rank keeps only its 1/p of |
# |---|---|
# | 1 | the optimizer's state |
# | 2 | and the gradients |
# | 3 | and the parameters |
#
# You need: lessons 3 and 7.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from safetensors.numpy import load_file, save_file

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

training, test = fashion_mnist()
WIDTHS = (784, *[256] * 12, 10)
STAGES = {"data parallel": DataParallel, "stage 1": Zero1, "stage 2": Zero2, "stage 3": Zero3}

# %% [markdown]
# ## An all-reduce has two halves
#
# *Reduce-scatter* gives each rank the finished sum of one part. *All-gather* gives every part to
# all. Together they are the all-reduce of lesson 6. ZeRO works between the two: the rank that has
# the finished sum of a part steps the optimizer for this part, alone.


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
# ## The same training
#
# Each stage must give the parameters that serial training gives. We also count what is sent. Psi
# (Ψ) is the number of parameters, p the number of ranks: the formulas are 2Ψ(p − 1)/p elements for
# data parallel and the first two stages, and 3Ψ(p − 1)/p for stage 3, which gathers the parameters
# twice.


# %%
def train(comm, build, steps=5):
    method = build(mlp(WIDTHS), CrossEntropy(), Adam(1e-3), comm)
    batches = Batches(training, 128, seed=0)
    losses = [method.step(batches[step]) for step in range(steps)]
    return losses, comm.trace.sent.nbytes / steps, method.parameters()


(expected, _, reference), *_ = launch(lambda comm: train(comm, Serial), 1, LocalWorld())
psi = sum(parameter.size for parameter in mlp(WIDTHS).parameters())
print_once(f"{psi:,} parameters; 4 ranks")
for name, build in STAGES.items():
    results = launch(lambda comm, b=build: train(comm, b), 4, LocalWorld())
    losses, _, parameters = results[0]
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
# ## Stop, and continue with fewer ranks
#
# A shard is a third of everything on 3 ranks, and a quarter on 4. So a checkpoint must not contain
# shards. `method.state()` gathers the shards into whole parameters: names and shapes are those of
# serial training, and each rank that loads takes its own shard. We train 3 steps on 4 ranks, save,
# and continue with 3 ranks, and then with one rank.


# %%
def first_half(comm):
    method = Zero3(mlp(WIDTHS), CrossEntropy(), Adam(1e-3), comm)
    batches = Batches(training, 128, seed=0)
    for step in range(3):
        method.step(batches[step])
    state = method.state()  # the same on every rank
    if comm.rank == 0:
        CHECKPOINT.parent.mkdir(parents=True, exist_ok=True)
        save_file(state, CHECKPOINT)
    comm.barrier()


def second_half(comm, build):
    method = build(mlp(WIDTHS), CrossEntropy(), Adam(1e-3), comm)
    method.load(load_file(CHECKPOINT))
    batches = Batches(training, 128, seed=0)
    return [method.step(batches[step]) for step in range(3, 5)]


CHECKPOINT = Path("out/lessons/08_zero.safetensors")
if first_process():
    launch(first_half, 4, LocalWorld())
    for ranks, build in ((4, Zero3), (3, Zero3), (3, Zero1), (1, Serial)):
        losses = launch(lambda comm, b=build: second_half(comm, b), ranks, LocalWorld())[0]
        gap = max(abs(a - b) / b for a, b in zip(losses, expected[3:], strict=True))
        print(f"saved by 4 ranks, loaded by {ranks} of {build.__name__}: loss gap {gap:.0e}")

# %% [markdown]
# ## The memory of a rank
#
# `method.arrays()` lists the arrays of a rank, by kind: this is measured. `method.cost()` gives the
# prediction of the formula. Stages 2 and 3 work with two *slots*, each as large as the largest
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
# ## Stage 3 on the clock
#
# A block's parameters must arrive before it can be computed. So while one block computes, the
# parameters of the next one are already being sent (*prefetch*), in the forward and again in the
# backward. Gradients are sent on the same stream. Data parallel and stage 3, on the same network:

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
# ## On real ranks
#
# So far every rank was simulated. The next lines run on the ranks that there are: four simulated
# ones under plain `python`, and real processes that send real messages under
#
#     minidist run -n 2 lessons/08_zero.py
#
# **Question.** What does a rank hold with stage 3 if you start it with twice as many ranks?


# %%
def on_these_ranks(comm):
    rows = {}
    for name, build in STAGES.items():
        before = comm.trace.sent.nbytes
        method = build(mlp(WIDTHS), CrossEntropy(), Adam(1e-3), comm)
        batches = Batches(training, 128, seed=0)
        losses = [method.step(batches[step]) for step in range(5)]
        sent = (comm.trace.sent.nbytes - before) / 5
        held = sum(array.nbytes for arrays in method.arrays().values() for array in arrays)
        rows[name] = losses, sent, held
    return rows


found = launch(on_these_ranks, 4)
kind = "real" if launched_size() else "simulated"
for name, (losses, sent, held_here) in found[0].items():
    gap = max(abs(a - b) / b for a, b in zip(losses, expected, strict=True))
    print_once(
        f"{len(found)} {kind} ranks, {name:14} loss gap to serial {gap:.0e}, "
        f"{sent / 1e6:5.2f} MB sent a step, {held_here / 1e6:6.2f} MB held"
    )

# %% [markdown]
# ## The same formula at another size
#
# The paper's example is a model of 7.5 billion parameters on 64 ranks, in mixed precision: 2 bytes
# for a parameter, 2 for its gradient, and 12 for Adam's state with a float32 copy. Here is such a
# GPT. It is declared and not initialised, so it takes no memory, and the same formulas hold for it.
# The paper's table (120, 31.4, 16.6, 1.9 GB) has the shards alone; the slots for whole blocks come
# on top.

# %%
model = gpt(vocabulary=50257, context=1024, width=3072, layers=65, heads=24)
for name, method in STAGES.items():
    by_kind = held(method, model, ranks=64, bytes_of=MIXED)
    slots = by_kind.pop("slots")[0]
    shards = sum(of_ranks[0] for of_ranks in by_kind.values())
    print_once(f"{name:14} {shards / 1e9:6.1f} GB a rank, and {slots / 1e9:.1f} GB of slots")

# %%
if first_process():
    figure = plt.figure(figsize=(12, 9))
    rows = figure.add_gridspec(3, 1, height_ratios=[2.2, 1, 1], hspace=0.5)
    axes = figure.add_subplot(rows[0])
    colours = {kind: MEMORY[kind] for kind in ("parameters", "gradients", "optimizer")}
    for group, (name, by_ranks) in enumerate(bars.items()):
        for index, (held, predicted) in enumerate(by_ranks):
            place, bottom = group * 5 + index, 0.0
            for kind, colour in colours.items():
                label = kind if place == 0 else None
                height = held[kind] / 1e6
                axes.bar(place, height, 0.85, bottom=bottom, color=colour, label=label)
                bottom += height
            line = sum(predicted.values()) / 1e6
            label = "formula" if place == 0 else None
            axes.hlines(line, place - 0.45, place + 0.45, "black", linewidth=2, label=label)
            axes.text(place, -0.3, str(RANKS[index]), ha="center", va="top", fontsize=8)
        axes.text(group * 5 + 1.5, -1.3, name, ha="center", va="top", fontsize=11)
    axes.set_xticks([])
    axes.set_title("MB that a rank holds, on 1, 2, 4 and 8 ranks", loc="left")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    axes.spines[["top", "right"]].set_visible(False)
    longest = max(e.end for events in timelines.values() for rank in events for e in rank)
    for row, (name, events) in enumerate(timelines.items(), 1):
        axes = figure.add_subplot(rows[row])
        draw_timeline(
            axes,
            events,
            f"{name}, one step on 4 ranks: green forward, blue backward, orange communication",
        )
        axes.set_xlim(0, longest * 1e3)
        axes.spines[["top", "right"]].set_visible(False)
    print(f"picture: {save(figure, 'out/lessons/08_zero.png')}")

# %% [markdown]
# ## What to take away
#
# 1. Stages 1 and 2 send no more bytes than data parallel, so there is hardly a reason not to use
#    them.
# 2. Stage 3 sends 1.5 times as much, and stores 1/p of everything, plus two slots.
# 3. Stage 3 saves memory but takes more time; prefetch reduces this time.
# 4. A checkpoint has whole parameters and not shards: any number of ranks can continue from it.
#
# **Try it:** Make one layer of `WIDTHS` very wide. What happens to the slots, and why do large
# models have many equal blocks? Then set the latency to 1 ms: which stage suffers most?
#
# **Marked exercises:** `minidist exercise start zero1`, `minidist exercise start zero2`.
