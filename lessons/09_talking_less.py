# %% [markdown]
# # 9. Talking less: shorter messages
#
# So far all ranks sent exact gradients in each step. On a slow network this takes most of the time.
# A gradient can be *compressed*: rounded, cut down to its largest elements, or replaced by
# something that is nearly the same. This no longer gives the numbers of serial training. So for
# each way we ask two questions: how many bytes are sent, and how good is the model?
#
# About 40 minutes. At the end you know what each of these ways sends and keeps back, and which of
# them still send little on many ranks. ([Lesson 25](25_talking_less_often.py) sends less *often*.)
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
from minidist.parallel import Compressed, DataParallel
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
#
# **Question 1.** A gradient of four elements is 1, 0.6, 0.3, 0.1 in each step, and only the largest
# is sent. In which step is the second one sent first, and how large is it then?


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
# In step 1, as 1.2: the sum of two steps. The sum of what was sent and what was kept always equals
# the sum of the gradients.
#
# ## The other ways, one by one
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
# ## All ways, measured
#
# Each way trains the same network on the same batches on four ranks. We use plain SGD with a
# falling rate: large steps near the end would change the accuracy more than the ways differ.
#
# **Question 2.** Which two of these ways send the least, and does any of them learn nothing?
#
# The test has 2,000 images. An accuracy of 80 % from so few has a standard error of
# √(0.8 · 0.2 / 2000) = 0.9 points: do not believe a difference of one point.


# %%
def train(comm, build):
    """Bytes a step of the rank that sends the most, and the test accuracy."""
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
    "exact": DataParallel,
    "float16": compressed(Float16),
    "bfloat16": compressed(BFloat16),
    "8 bits": compressed(Quantised),
    "sign": compressed(Sign),
    "top 1 %": compressed(TopK, 0.01),
    "top 0.1 %": compressed(TopK, 0.001),
    "random 10 %": compressed(RandomK, 0.1),
    "rank 2": compressed(PowerSGD, 2),
}
points = {}
for name, build in ways.items():
    results = launch(lambda comm, b=build: train(comm, b), 4, LocalWorld())
    points[name] = max(sent for sent, _ in results), results[0][1]
    sent, reached = points[name]
    factor = points["exact"][0] / sent
    print_once(f"{name:12} {sent / 1e3:8.2f} KB a step, 1/{factor:5.1f}, {reached:.1%}")

# %% [markdown]
# The top 0.1 % and the top 1 % send the least. All learn, and only the top 0.1 % is clearly worse.
#
# ## Can messages be added?
#
# 8 bits send no less here than 16, and bfloat16 no less than 32. Why? Two float16 arrays can be
# added, and so can the factors of PowerSGD. So a ring all-reduce can add them, and the bytes of a
# rank hardly grow with the number of ranks. But the largest elements of two ranks have different
# indices, and 8-bit numbers have different scales. (NumPy has no bfloat16 to add with.) So all
# ranks need the messages of all ranks, an *all-gather*: the bytes grow with p.
#
# **Question 3.** Which lines below grow, and by how much from 2 ranks to 32?


# %%
def bytes_of(comm, build):
    method = build(mlp(WIDTHS), CrossEntropy(), SGD(0.05), comm)
    return method.cost(Batches(training, BATCH)[0], comm.machine).nbytes[0]


RANKS = (2, 4, 8, 16, 32)
growth = {}
for name in ("exact", "float16", "8 bits", "sign", "top 1 %", "rank 2"):
    growth[name] = [
        launch(lambda comm, b=ways[name]: bytes_of(comm, b), p, LocalWorld())[0] for p in RANKS
    ]
    print_once(f"{name:12}" + "".join(f"{n / 1e3:10.1f}" for n in growth[name]) + "  KB")

# %% [markdown]
# From 2 to 32 ranks a ring's bytes grow to less than twice as much, since (p - 1)/p goes from 1/2
# to nearly 1. Those of an all-gather become 31 times as much, since each rank sends p - 1 times.
# So 8 bits are half of exact on 4 ranks, and four times as much on 32.

# %%
if first_process():
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.2), layout="constrained")
    for row, (name, (sent, reached)) in enumerate(points.items()):
        left.barh(name, sent / 1e3, color=SERIES[row])
        left.text(sent / 1e3, row, f" {reached:.1%}", va="center", fontsize=9)
    left.set(xscale="log", xlabel="KB that a rank sends in a step, 4 ranks", xlim=(0.5, 900))
    left.set_title(f"behind each bar: test accuracy after {STEPS} steps of {BATCH}", loc="left")
    left.invert_yaxis()
    for name, sizes in growth.items():
        colour = SERIES[list(points).index(name)]
        right.loglog(RANKS, [n / 1e3 for n in sizes], "o-", label=name, markersize=4, color=colour)
    right.set_xticks(RANKS, [str(p) for p in RANKS])
    right.xaxis.set_minor_locator(NullLocator())
    right.set_xlabel("ranks")
    right.set_title("KB that a rank sends in a step, by the number of ranks", loc="left")
    right.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    right.grid(alpha=0.3)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    print(f"picture: {save(figure, 'out/lessons/09_talking_less.png')}")

# %% [markdown]
# ## On real ranks
#
# So far every rank was simulated. The next lines run on the ranks that there are: four simulated
# ones under plain `python`, and real processes that send real messages under
#
#     minidist run -n 2 lessons/09_talking_less.py
#
# **Question 4.** All-gathered messages grow with the ranks, all-reduced ones hardly do. By which
# factor do the bytes of a rank fall from 4 ranks to 2, for each of these ways?


# %%
def on_these_ranks(comm):
    rows = {}
    for name in ("exact", "float16", "sign", "top 1 %", "rank 2"):
        before = comm.trace.sent.nbytes
        method = ways[name](mlp(WIDTHS), CrossEntropy(), SGD(0.1), comm)
        batches = Batches(training, BATCH, seed=0)
        loss = [method.step(batches[step]) for step in range(20)][-1]
        rows[name] = loss, (comm.trace.sent.nbytes - before) / 20
    return rows


found = launch(on_these_ranks, 4)
kind = "real" if launched_size() else "simulated"
for name, (loss, sent) in found[0].items():
    print_once(f"{len(found)} {kind} ranks, {name:12} {sent / 1e3:7.2f} KB a step, loss {loss:.3f}")

# %% [markdown]
# Those of sign and top 1 % fall to a third, the others' to two thirds.
#
# ## What to take away
#
# 1. With error feedback, sending 1 % of the gradient is enough to learn, because nothing is lost.
# 2. Ask whether compressed messages can be added. If not, the bytes grow with the number of ranks,
#    and a method that sends little on 4 ranks may send a lot on 400.
# 3. Each of these ways has a setting in which it is exact. Test this setting first.
#
# **Try it:**
#
# 1. Use `SGD(linear(0.1, STEPS, 0.01), momentum=0.9)`. Which ways become much worse?
# 2. From how many ranks on does the top 1 % send more than exact training? Calculate it from the
#    table, then let `bytes_of` say it.
#
# <details><summary>Answers</summary>
#
# 1. Those that keep a part back or leave one out: random 10 % hardly learns (15 %), rank 2 reaches
#    66 %, sign and the top 1 % lose 7 to 11 points. A late gradient is amplified by the momentum
#    before it is corrected. Rounding (float16, bfloat16, 8 bits) loses about a point or none.
# 2. Per rank, exact training sends 2Ψ(p - 1)/p numbers of 4 bytes; the top 1 % sends Ψ/100 numbers
#    and as many indices, p - 1 times. The second is more from p = 100 on, which `bytes_of`
#    confirms.
#
# </details>
#
# **Marked exercise:** `minidist exercise start top_k`.
