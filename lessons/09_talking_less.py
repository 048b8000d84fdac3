# %% [markdown]
# # 9. Talking less
#
# So far all ranks sent exact gradients in each step. On a slow network this takes most of the time.
# There are three ways to send less:
#
# - **shorter messages**: compress the gradient;
# - **less often**: train separately for some steps, then average;
# - **to fewer ranks**: average with neighbours only.
#
# None of them gives the same numbers as serial training. So for each we ask two questions: how many
# bytes are sent, and how good is the model?
#
# At the end you know what each of these ways sends and keeps back, and which of them still send
# little on many ranks.
#
# You need: lessons 6 and 7. Run it with `python lessons/09_talking_less.py`.

# %%
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import NullLocator

from minidist import LocalWorld, launch
from minidist.colours import SERIES
from minidist.comm import first_process, launched_size, print_once
from minidist.data import Batches, fashion_mnist
from minidist.inspect import accuracy
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import SGD
from minidist.optim.schedules import linear
from minidist.parallel import Compressed, DataParallel, DiLoCo, Gossip, LocalSGD
from minidist.parallel.averaging import exponential_graph, ring_graph
from minidist.parallel.gradient_compression import (
    BFloat16,
    Float16,
    PowerSGD,
    Quantised,
    RandomK,
    Sign,
    TopK,
)
from minidist.plots import save

training, test = fashion_mnist()
WIDTHS, STEPS, BATCH = (784, 48, 10), 160, 64

# %% [markdown]
# ## Error feedback: late, but not lost
#
# *Top-k* sends the k largest elements of the gradient. If the rest were discarded, small but steady
# gradients would never be sent. *Error feedback* keeps the rest, and adds it to the next gradient.
# Watch four elements, of which only the largest is sent in each step:


# %%
def watch(comm):
    compressor = TopK(0.25)
    compressor.start(np.zeros(4), {"w": (4,)}, seed=0)
    lines = []
    for step in range(5):
        gradient = np.array([1.0, 0.6, 0.3, 0.1])
        compressor.sum(comm, gradient, step)
        lines.append((gradient.copy(), compressor.residual.copy()))
    return lines


for step, (sent, owed) in enumerate(launch(watch, 1, LocalWorld())[0]):
    print_once(f"step {step}: sent {np.round(sent, 1)}, not yet sent {np.round(owed, 1)}")

# %% [markdown]
# The second element is sent every few steps, with everything accumulated since then. The sum of
# what was sent and what was kept always equals the sum of the gradients; the tests check this for
# every compressor with feedback.
#
# ## The other ways, one by one
#
# *Shorter messages*:
#
# - **float16, bfloat16, 8 bits**: fewer bits for each number. With 8 bits the numbers of an array
#   share a scale, and are rounded at random, so that they are right on average.
# - **sign**: one bit a number, and one size for each array. The ranks vote on each sign. Error
#   feedback keeps the rest.
# - **random k**: k elements chosen at random, the same on all ranks, so that they can be added.
# - **rank 2** (PowerSGD): a gradient of a layer is a matrix of m × n numbers. It is replaced by a
#   product of two thin ones, m × 2 and 2 × n, found by multiplying once with the gradient from each
#   side (one step of a *power iteration*). Error feedback keeps the rest here, too.
#
# *Less often*:
#
# - **H = 4, 16, 40** (local SGD): each rank trains alone for H steps, then all take the average of
#   their parameters.
# - **DiLoCo**: the same, but what the H steps have changed on average is used like a gradient, by a
#   second optimizer with momentum.
#
# *To fewer ranks* (gossip): after each step a rank averages its parameters with two neighbours, or
# in the exponential graph with one other rank.
#
# ## All ways, measured
#
# **Question 1.** Which three of these ways send the least, and does any of them learn nothing?
#
# The test has 2,000 images. An accuracy of 80 % from so few has a standard error of
# √(0.8 · 0.2 / 2000) = 0.9 points: do not believe a difference of one point.
#
# Each way trains the same network on the same batches on four ranks. We use plain SGD with a
# falling rate: large steps near the end would change the accuracy more than the ways differ. With
# momentum a late gradient is amplified before it is corrected, and some of these ways diverge.


# %%
def train(comm, build):
    optimizer = SGD(linear(0.1, STEPS, 0.01))
    method = build(mlp(WIDTHS), CrossEntropy(), optimizer, comm)
    batches = Batches(training, BATCH, seed=0)
    for step in range(STEPS):
        method.step(batches[step])
    sent = comm.trace.sent.nbytes / STEPS
    parameters = method.parameters()
    right = accuracy(mlp(WIDTHS).init().load(parameters), test) if comm.rank == 0 else 0.0
    return sent, right


def compressed(kind, *options):
    return partial(Compressed, compressor=partial(kind, *options))


ways = {
    "exact": {"exact": DataParallel},
    "shorter": {
        "float16": compressed(Float16),
        "bfloat16": compressed(BFloat16),
        "8 bits": compressed(Quantised),
        "sign": compressed(Sign),
        "top 1 %": compressed(TopK, 0.01),
        "top 0.1 %": compressed(TopK, 0.001),
        "random 10 %": compressed(RandomK, 0.1),
        "rank 2": compressed(PowerSGD, 2),
    },
    "less often": {
        "H = 4": partial(LocalSGD, every=4),
        "H = 16": partial(LocalSGD, every=16),
        "H = 40": partial(LocalSGD, every=40),
        "DiLoCo 16": partial(DiLoCo, every=16),
    },
    "to fewer": {
        "gossip ring": Gossip,
        "gossip exp.": partial(Gossip, graph="exponential"),
    },
}
points = {}
for group, members in ways.items():
    for name, build in members.items():
        results = launch(lambda comm, b=build: train(comm, b), 4, LocalWorld())
        sent = max(result[0] for result in results)
        points[name] = (group, sent, results[0][1])
exact = points["exact"][1]
for name, (_, sent, reached) in points.items():
    print_once(f"{name:12} {sent / 1e3:8.2f} KB a step, 1/{exact / sent:5.1f}, {reached:.1%}")

# %% [markdown]
# ## Can messages be added?
#
# Two float16 arrays can be added, and so can the factors of PowerSGD. So a ring all-reduce can add
# them, and the bytes of a rank hardly grow with the number of ranks. But the largest elements of
# two ranks have different indices, so all ranks need the messages of all ranks (an all-gather): the
# bytes grow with p.
#
# **Question 2.** Which lines below grow, and by how much from 2 ranks to 32?


# %%
def bytes_of(comm, build):
    method = build(mlp(WIDTHS), CrossEntropy(), SGD(0.05), comm)
    return method.cost(Batches(training, BATCH)[0], comm.machine).nbytes[0]


RANKS = (2, 4, 8, 16, 32)
growth = {}
for name in ("exact", "float16", "8 bits", "sign", "top 1 %", "rank 2"):
    build = next(members[name] for members in ways.values() if name in members)
    growth[name] = [
        launch(lambda comm, b=build: bytes_of(comm, b), p, LocalWorld())[0] for p in RANKS
    ]
    print_once(f"{name:12}" + "".join(f"{n / 1e3:10.1f}" for n in growth[name]) + "  KB")

# %% [markdown]
# ## How fast does gossip spread?
#
# One rank begins with the number 1, and all others with 0. After each round of averaging with
# neighbours: what is the largest difference of any rank from the mean?
#
# **Question 3.** How many rounds do sixteen ranks need at least, until all have heard of all, if
# each exchanges with one other in a round? And in a ring?

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

# %%
if first_process():
    figure, (main, left, right) = plt.subplots(
        1, 3, figsize=(15, 5), width_ratios=[1.8, 1, 1], layout="constrained"
    )
    colours = dict(zip(ways, ("black", *SERIES[:3]), strict=True))
    for group, colour in colours.items():
        chosen = {name: point for name, point in points.items() if point[0] == group}
        main.scatter(
            [sent / 1e3 for _, sent, _ in chosen.values()],
            [100 * reached for *_, reached in chosen.values()],
            s=45,
            color=colour,
            label=group,
        )
    crowded = {
        "8 bits": (-38, -3),
        "H = 4": (-8, -15),
        "bfloat16": (6, -13),
        "gossip ring": (8, -2),
        "gossip exp.": (-30, -15),
        "top 1 %": (-30, -14),
        "rank 2": (5, -12),
    }
    for name, (group, sent, reached) in points.items():
        main.annotate(
            name,
            (sent / 1e3, 100 * reached),
            crowded.get(name, (4, 6)),
            textcoords="offset points",
            fontsize=8,
            color=colours[group],
        )
    main.set_xscale("log")
    main.set_xlim(0.6, 700)
    main.set_xlabel("KB that a rank sends in a step, 4 ranks")
    main.set_title(f"test accuracy (%) after {STEPS} steps of {BATCH}", loc="left")
    main.legend(frameon=False, loc="lower right")
    main.grid(alpha=0.3)
    for name, sizes in growth.items():
        left.loglog(RANKS, [n / 1e3 for n in sizes], "o-", label=name, markersize=4)
    left.set_xticks(RANKS, [str(p) for p in RANKS])
    left.xaxis.set_minor_locator(NullLocator())
    left.set_xlabel("ranks")
    left.set_title("KB a step of one rank", loc="left")
    left.legend(frameon=False, fontsize=8)
    left.grid(alpha=0.3)
    for name, gaps in spread.items():
        right.semilogy(range(1, 25), gaps, "o-", label=name, markersize=4)
    right.set_ylim(1e-6, 1)
    right.set_xlabel("rounds")
    right.set_title("gossip: distance from the mean, 16 ranks", loc="left")
    right.legend(frameon=False)
    right.grid(alpha=0.3)
    print(f"picture: {save(figure, 'out/lessons/09_talking_less.png')}")

# %% [markdown]
# In the exponential graph a rank exchanges with one other rank in each round, at distance 1, 2, 4,
# 8 in turn. After four rounds all sixteen ranks have the exact mean. The ring, with two neighbours
# in each round, needs many more rounds.
#
# ## On real ranks
#
# So far every rank was simulated. The next lines run on the ranks that there are: four simulated
# ones under plain `python`, and real processes that send real messages under
#
#     minidist run -n 2 lessons/09_talking_less.py
#
# **Question 4.** All-gathered messages grow with the ranks, all-reduced ones hardly do. Which of
# these ways sends more bytes a rank on 4 ranks than on 2?


# %%
def on_these_ranks(comm):
    some = {name: build for members in ways.values() for name, build in members.items()}
    rows = {}
    for name in ("exact", "float16", "sign", "top 1 %", "rank 2", "H = 4", "gossip exp."):
        before = comm.trace.sent.nbytes
        method = some[name](mlp(WIDTHS), CrossEntropy(), SGD(0.1), comm)
        batches = Batches(training, BATCH, seed=0)
        loss = [method.step(batches[step]) for step in range(20)][-1]
        rows[name] = loss, (comm.trace.sent.nbytes - before) / 20
    return rows


found = launch(on_these_ranks, 4)
kind = "real" if launched_size() else "simulated"
for name, (loss, sent) in found[0].items():
    print_once(f"{len(found)} {kind} ranks, {name:12} {sent / 1e3:7.2f} KB a step, loss {loss:.3f}")

# %% [markdown]
# ## What to take away
#
# 1. With error feedback, sending 1 % of the gradient is enough to learn, because nothing is lost.
# 2. Averaging only every H steps saves a factor of H, but the copies diverge more with a larger H.
# 3. Ask whether compressed messages can be added. If not, the bytes grow with the number of ranks,
#    and a method that sends little on 4 ranks may send a lot on 400.
# 4. Each of these ways has a setting in which it is exact. Test this setting first.
#
# **Try it:** Use `SGD(linear(0.1, STEPS, 0.01), momentum=0.9)`. Which ways diverge? Then give
# DiLoCo `every=60`: how does it compare with plain averaging at that H?
#
# **Marked exercise:** `minidist exercise start top_k`.
