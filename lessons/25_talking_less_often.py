# %% [markdown]
# # 25. Talking less often, and to fewer
#
# *Read this lesson after lesson 9.* Must ranks talk after each step, and with all others? They can
# train alone for some steps and then average their *parameters*. Or they can average with a few
# neighbours only. Both send less than data parallelism, or wait less; and neither gives the numbers
# of serial training.
#
# About 35 minutes. At the end you know local SGD, DiLoCo and gossip: what each sends, how far the
# copies of the model drift apart, and in how many rounds a number reaches all ranks.
#
# You need: lessons 7 and 9. Run it with `python lessons/25_talking_less_often.py`.

# %%
from functools import partial

import matplotlib.pyplot as plt
import numpy as np

from minidist import LocalWorld, launch
from minidist.colours import SERIES
from minidist.comm import first_process, launched_size, print_once
from minidist.data import Batches, fashion_mnist
from minidist.inspect import accuracy
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import SGD
from minidist.optim.schedules import linear
from minidist.parallel import DataParallel, DiLoCo, Gossip, LocalSGD
from minidist.parallel.averaging import exponential_graph, ring_graph
from minidist.plots import save

training, test = fashion_mnist()
WIDTHS, STEPS, BATCH = (784, 48, 10), 160, 64

# %% [markdown]
# ## Less often: local SGD
#
# Each rank trains alone for H steps, then all take the average of their parameters, by an
# all-reduce:
#
#     rank 0   ●─●─●─●╮   ╭●─●─●─●╮   ╭●
#     rank 1   ●─●─●─●┤avg├●─●─●─●┤avg├●     H = 4
#     rank 2   ●─●─●─●╯   ╰●─●─●─●╯   ╰●
#
# A rank sees only its own part of each batch, so between two averages the copies *drift* apart.
#
# **Question 1.** Twice the H: how many bytes a step? And are copies that trained alone for 40 steps
# twice as far from their average as after 20?


# %%
def parameters_after(comm, steps):
    """The parameters of each rank after ``steps`` steps alone."""
    method = LocalSGD(mlp(WIDTHS), CrossEntropy(), SGD(0.1), comm, every=STEPS)
    batches = Batches(training, BATCH, seed=0)
    for step in range(steps):
        method.step(batches[step])
    return method.model.flat.data.copy()


for steps in (1, 5, 10, 20, 40, 80):
    copies = launch(lambda comm, n=steps: parameters_after(comm, n), 4, LocalWorld())
    mean = np.mean(copies, axis=0)
    apart = np.mean([np.linalg.norm(copy - mean) for copy in copies])
    moved = np.linalg.norm(mean - mlp(WIDTHS).init(0).flat.data)
    print_once(
        f"{steps:3} steps alone: the mean has moved by {moved:.2f}, copies are {apart:.2f} away"
    )

# %% [markdown]
# Half the bytes: an average is sent half as often. The copies are 1.25 times as far apart after 40
# steps as after 20: drift grows more slowly than the number of steps, since many of the differences
# are noise of the batches, and since all copies go down the same slope.
#
# ## DiLoCo: the change is a gradient
#
# What the H steps have changed on average can be used like a gradient: *DiLoCo* gives it to a
# second, *outer* optimizer with momentum. So what one round has learned also speeds up the next.
#
# ## To fewer: gossip
#
# After each step a rank averages its parameters with its neighbours: with the left and the right
# one in a *ring*, or in the *exponential graph* with one other rank, which is 1, 2, 4, ... places
# away, in turn. No rank waits for all. How fast does this spread? Let one rank begin with the
# number 1, and all others with 0. After each round of averaging we ask for the largest difference
# of any rank from the mean.
#
# **Question 2.** How many rounds do sixteen ranks need at least, until all have heard of all, if
# each hears one other in a round? And in a ring?

# %%
spread = {}
for name, graph in {"ring": ring_graph, "exponential": exponential_graph}.items():
    values = np.eye(16)[0]
    spread[name] = []
    for step in range(24):
        heard = [np.roll(values, distance) for distance in graph(step, 16)]
        values = (values + sum(heard)) / (1 + len(heard))
        spread[name].append(max(1e-17, np.abs(values - 1 / 16).max()))
    print_once(f"{name:12} after 4 rounds {spread[name][3]:.0e}, after 24 {spread[name][-1]:.0e}")

# %% [markdown]
# Who has heard of k ranks can pass all of it on, so the number doubles in each round: four rounds
# for sixteen. In the exponential graph all sixteen then have the exact mean. In a ring the news
# goes one place further in each round, so eight rounds are needed until all have heard, and many
# more until the differences are small.
#
# ## All of them, measured
#
# **Question 3.** Which of these sends more than exact training? Which is the least accurate?
#
# The test has 2,000 images. An accuracy of 80 % from so few has a standard error of
# √(0.8 · 0.2 / 2000) = 0.9 points: do not believe a difference of one point.


# %%
def train(comm, build):
    """Bytes a step, and the test accuracy."""
    method = build(mlp(WIDTHS), CrossEntropy(), SGD(linear(0.1, STEPS, 0.01)), comm)
    batches = Batches(training, BATCH, seed=0)
    for step in range(STEPS):
        method.step(batches[step])
    sent = comm.trace.sent.nbytes / STEPS
    parameters = method.parameters()
    right = accuracy(mlp(WIDTHS).init().load(parameters), test) if comm.rank == 0 else 0.0
    return sent, right


ways = {
    "exact": DataParallel,
    "local SGD, H = 4": partial(LocalSGD, every=4),
    "local SGD, H = 16": partial(LocalSGD, every=16),
    "local SGD, H = 40": partial(LocalSGD, every=40),
    "DiLoCo, H = 16": partial(DiLoCo, every=16),
    "gossip, ring": Gossip,
    "gossip, exponential": partial(Gossip, graph="exponential"),
}
points = {}
for name, build in ways.items():
    results = launch(lambda comm, b=build: train(comm, b), 4, LocalWorld())
    points[name] = max(sent for sent, _ in results), results[0][1]
    sent, reached = points[name]
    factor = points["exact"][0] / sent
    print_once(f"{name:20} {sent / 1e3:8.2f} KB a step, 1/{factor:5.1f}, {reached:.1%}")

# %% [markdown]
# On four ranks a ring all-reduce sends 2Ψ · 3/4 numbers, with Ψ for the number of parameters, and
# gossip in a ring 2Ψ: more, but in two messages that do not wait for each other. On many ranks that
# counts: a ring all-reduce sends 2(p - 1) messages one after the other, gossip still two.

# %%
if first_process():
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(12, 4), width_ratios=[1.5, 1], layout="constrained"
    )
    for row, (name, (sent, reached)) in enumerate(points.items()):
        left.barh(name, sent / 1e3, color=SERIES[row])
        left.text(sent / 1e3, row, f" {reached:.1%}", va="center", fontsize=9)
    left.set(xscale="log", xlabel="KB that a rank sends in a step, 4 ranks", xlim=(3, 900))
    left.set_title(f"behind each bar: test accuracy after {STEPS} steps of {BATCH}", loc="left")
    left.invert_yaxis()
    for name, gaps in spread.items():
        right.semilogy(range(1, 25), gaps, "o-", label=name, markersize=4)
    right.set_ylim(1e-6, 1)
    right.set_xlabel("rounds")
    right.set_title("gossip: distance from the mean, 16 ranks", loc="left")
    right.legend(frameon=False)
    right.grid(alpha=0.3)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    print(f"picture: {save(figure, 'out/lessons/25_talking_less_often.png')}")

# %% [markdown]
# ## On real ranks
#
# So far every rank was simulated. The next lines run on the ranks that there are: four simulated
# ones under plain `python`, and real processes that send real messages under
#
#     minidist run -n 2 lessons/25_talking_less_often.py
#
# **Question 4.** Each of these ways is exact in one case. Averaging after *each* step (H = 1) with
# plain SGD: what must the gap to serial training be? And on two ranks, what does gossip compute?


# %%
def on_these_ranks(comm):
    batches = Batches(training, BATCH, seed=0)
    rows = {}
    builds = {name: ways[name] for name in ("exact", "gossip, ring", "gossip, exponential")}
    for name, build in ({"local SGD, H = 1": partial(LocalSGD, every=1)} | builds).items():
        before = comm.trace.sent.nbytes
        method = build(mlp(WIDTHS), CrossEntropy(), SGD(0.1), comm)
        loss = [method.step(batches[step]) for step in range(20)][-1]
        rows[name] = loss, (comm.trace.sent.nbytes - before) / 20
    return rows


found = launch(on_these_ranks, 4)
kind = "real" if launched_size() else "simulated"
for name, (loss, sent) in found[0].items():
    print_once(f"{len(found)} {kind} ranks, {name:20} {sent / 1e3:7.2f} KB a step, loss {loss:.4f}")

# %% [markdown]
# With H = 1 the mean of the ranks' steps is the step of the mean gradient: the gap is rounding. On
# two ranks each is the other's only neighbour, so gossip averages over all, and is exact, too.
#
# ## What to take away
#
# 1. Averaging only every H steps saves a factor of H, but the copies drift further apart.
# 2. DiLoCo uses the average change as a gradient, with momentum.
# 3. Gossip has a constant number of messages for any number of ranks. The graph decides how fast
#    news spreads: in ⌈log₂ p⌉ rounds, or in p/2.
# 4. Each of these ways has a setting in which it is exact. Test this setting first.
#
# **Try it:**
#
# 1. Give DiLoCo `every=40`, and then 80: how does it compare with plain averaging at that H?
# 2. In the spread of a number, use 12 ranks in place of 16. Does the exponential graph still give
#    the exact mean after four rounds?
#
# <details><summary>Answers</summary>
#
# 1. Within the error of one point they are equal: 80.3 and 79.8 % for H = 40, 79.5 and 79.2 % for
#    H = 80. In 160 steps there are only four rounds, or two: too few for a momentum.
# 2. No: one rank is still 0.042 away from the mean of 1/12, half of it. With 1, 2, 4 and 8 places,
#    some ranks are reached twice in four rounds if there are fewer than 16.
#
# </details>
