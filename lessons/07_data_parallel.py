# %% [markdown]
# # 7. Data parallel: from naive to overlapped
#
# Every rank holds the whole model. Every rank works on its own part of the batch. Then the ranks
# add up their gradients, and all take the same step. This is data parallel training; most models
# are trained in this way.
#
# About 25 minutes. At the end you know why gradients are added and not averaged, three ways to send
# them, and what must be true of a machine before overlapping saves time.
#
# You need: lessons 3 and 6. Run it with `python lessons/07_data_parallel.py`.

# %%
import matplotlib.pyplot as plt
import numpy as np

from minidist import LocalWorld, Machine, launch
from minidist.collectives import ring
from minidist.colours import series
from minidist.comm import first_process, launched_size, print_once
from minidist.comm.timeline import draw_timeline
from minidist.data import Batches, fashion_mnist
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import SGD
from minidist.parallel import DataParallel, Overlapped, PerParameter, Serial, simulate
from minidist.plots import save

training, _ = fashion_mnist()

# %% [markdown]
# ## Add, do not average
#
# The loss of a batch is a mean over its samples. Its gradient is a sum over samples, divided by
# their number. So the gradient of the whole batch is the *sum* of the ranks' gradients, if each
# rank divides by the number of samples in the *whole* batch.
#
# A common mistake: each rank takes the mean over its own samples, and then the ranks average these
# means.
#
# **Question 1.** Four ranks share a batch of 8, and then one of 9. In which of the two does the
# average of averages differ from the gradient of the batch, and whose samples count too little?


# %%
def gradient_of(model, samples, count):
    model.zero_grad()
    CrossEntropy()(model(samples.inputs), samples.targets, count).backward()
    return model.flat.grad.copy()


def sum_or_average(comm, size):
    model, batch = mlp().init(0), Batches(training, size)[0]
    mine = batch.shard(comm.rank, comm.size)
    right = gradient_of(model, mine, len(batch))
    ring.all_reduce(comm, right)
    wrong = gradient_of(model, mine, len(mine))
    ring.all_reduce(comm, wrong)
    wrong /= comm.size
    serial = gradient_of(model, batch, len(batch))
    norm = np.linalg.norm(serial)
    return np.linalg.norm(right - serial) / norm, np.linalg.norm(wrong - serial) / norm


for size in (8, 9):
    summed, averaged = launch(lambda comm, n=size: sum_or_average(comm, n), 4, LocalWorld())[0]
    print_once(f"batch of {size}: sum off by {summed:.0e}, average of averages by {averaged:.0e}")

# %% [markdown]
# With 8 samples on 4 ranks both are right up to rounding. With 9, one rank has three samples and
# the others two: the average of averages gives the three samples too little weight. Nothing
# crashes, and the loss still goes down, but the result differs from serial training. Such bugs are
# hard to find.
#
# ## Three ways to send
#
# - `PerParameter` waits for the backward to end, and then all-reduces one parameter after another.
#   Each message costs the latency α, however short it is.
# - `DataParallel` sends all gradients as one array: the same bytes, in far fewer messages.
# - `Overlapped` does not wait. The backward computes the last layer's gradient first. As soon as a
#   *bucket* of gradients (some parameters next to each other) is complete, its all-reduce starts on
#   a second *stream*: messages that go on by themselves, while the rank computes the gradients of
#   the layers before. `bucket_mb` is the size of a bucket. The last bucket, which the backward
#   completes at its end, has a size of its own, `last_mb`: nothing is left to compute while it is
#   sent.
#
# (A fourth, `SymmetricDataParallel`, sends nothing: on one machine, gradients can be in shared
# memory. See the end of lesson 26.)
#
# We give the local world a slow network, so that the difference is easy to see. Each time below is
# measured on the virtual clock. Beside it stands what `simulate` says. It runs the same step on
# arrays that have a shape and no numbers: nothing is computed, and the clock is the same.
#
# **Question 2.** The model has seven layers, so fourteen parameters. A ring all-reduce of p ranks
# needs 2(p − 1) messages a rank. How many messages does each way send? Which is the fastest?

# %%
machine = Machine("slow", latency=300e-6, bandwidth=250e6, reduce_bandwidth=8e9, flops=1e10)
WIDTHS = (784, 128, 256, 256, 256, 256, 256, 10)


def one_step(comm, build):
    method = build(mlp(WIDTHS), CrossEntropy(), SGD(0.05), comm)
    batch = Batches(training, 512)[0]
    comm.barrier()
    comm.trace.events.clear()  # the timeline shall begin with the step
    start = comm.time()
    method.step(batch)
    return comm.time() - start, comm.trace.sent.messages, comm.trace.events


def predicted(build):
    """Seconds of the same step, run on arrays that have shapes and no numbers."""
    return simulate(
        lambda comm: build(mlp(WIDTHS), CrossEntropy(), SGD(0.05), comm),
        Batches(training, 512),
        4,
        machine,
    ).step_seconds


ways = {
    "per parameter": PerParameter,
    "flat": DataParallel,
    "overlapped": lambda *args: Overlapped(*args, bucket_mb=0.25, last_mb=0.1),
}
timelines = {}
for name, build in ways.items():
    world = LocalWorld(machine, record=True)
    results = launch(lambda comm, b=build: one_step(comm, b), 4, world)
    timelines[name] = [events for *_, events in results]
    seconds = max(result[0] for result in results)
    print_once(
        f"{name:14} {results[0][1]:3} messages a rank, {seconds * 1e3:6.2f} ms a step, "
        f"without numbers {predicted(build) * 1e3:6.2f} ms"
    )

# %% [markdown]
# Per parameter: 14 parameters × 6 messages are 84. Flat: one all-reduce, 6. Overlapped: six
# buckets, so 36; but most of them are sent while the backward computes.
#
# In the timelines, wide green is forward, wide blue is backward, and thin orange is sending,
# receiving and waiting. In the lowest one the orange begins *inside* the blue: that part of the
# communication costs no time.

# %%
if first_process():
    figure, axes = plt.subplots(3, 1, figsize=(12, 6.5), layout="constrained")
    longest = max(event.end for rank in timelines["per parameter"] for event in rank)
    for panel, (name, events) in zip(axes, timelines.items(), strict=True):
        draw_timeline(panel, events, name)
        panel.set_xlim(0, longest * 1e3)  # one scale for all three
        panel.spines[["top", "right"]].set_visible(False)
    meaning = "green: forward, blue: backward, orange: sending, receiving, waiting"
    axes[0].set_title(meaning, loc="right", fontsize=9)
    print(f"picture: {save(figure, 'out/lessons/07_data_parallel.png')}")

# %% [markdown]
# ## How large should a bucket be?
#
# Small buckets start early, but each costs 2(p − 1) times α. Large buckets cost less latency, but
# start late; one single bucket is the flat version. `simulate` finds the best size.
#
# **Question 3.** The gradients have 1.6 MB. Which size do you expect to be the best?


# %%
sizes = [0.01, 0.03, 0.1, 0.2, 0.25, 0.35, 0.5, 0.75, 1.0, 2.0, 4.0]
by_size = [
    predicted(lambda *args, mb=mb: Overlapped(*args, bucket_mb=mb, last_mb=0)) for mb in sizes
]
best = sizes[int(np.argmin(by_size))]
print_once(f"best bucket of those tried: {best} MB, {min(by_size) * 1e3:.2f} ms a step")

# %%
if first_process():
    figure, axes = plt.subplots(figsize=(9, 3.2), layout="constrained")
    axes.semilogx(sizes, [seconds * 1e3 for seconds in by_size], "o-", color=series(0))
    axes.set_title("overlapped: ms a step by bucket size", loc="left")
    axes.set_xlabel("MB a bucket")
    axes.grid(alpha=0.3)
    print(f"picture: {save(figure, 'out/lessons/07_data_parallel_buckets.png')}")

# %% [markdown]
# PyTorch's default is 25 MB: its models are a hundred times larger than this one.
#
# ## On real ranks
#
# So far every rank was simulated. The next lines run on the ranks that there are: four simulated
# ones under plain `python`, and real processes that send real messages under
#
#     minidist run -n 2 lessons/07_data_parallel.py
#
# **Question 4.** Which of these must be the same on both: messages, loss, seconds?


# %%
def on_these_ranks(comm):
    rows = {}
    for name, build in ways.items():
        method = build(mlp(WIDTHS), CrossEntropy(), SGD(0.05), comm)
        before, start = comm.trace.sent.messages, comm.time()
        losses = [method.step(Batches(training, 512)[step]) for step in range(3)]
        sent = (comm.trace.sent.messages - before) // 3
        rows[name] = losses[-1], sent, (comm.time() - start) / 3
    return rows


def alone(comm):
    method = Serial(mlp(WIDTHS), CrossEntropy(), SGD(0.05), comm)
    return [method.step(Batches(training, 512)[step]) for step in range(3)][-1]


found = launch(on_these_ranks, 4)
serial = launch(alone, 1, LocalWorld())[0]
kind = "real" if launched_size() else "simulated"
for name, (loss, sent, seconds) in found[0].items():
    print_once(
        f"{len(found)} {kind} ranks, {name:14} {sent:3} messages a step, {seconds * 1e3:6.2f} ms, "
        f"loss {abs(loss / serial - 1):.0e} from serial"
    )

# %% [markdown]
# With the same number of ranks, messages and losses are those of the simulator, to the last bit.
# With another number there are other messages, and the losses differ in rounding. Seconds are those
# of your machine, and there overlapping may gain nothing.
#
# In the local world each rank has a core that computes *and* a network card that sends. Two ranks
# on one machine use no network card: a core copies the message. If this core also has a batch to
# compute, the copy delays the computation, and nothing is hidden. You can measure this: `minidist
# bench scaling` shows that the cores are busy all the time in a flat step, and overlapping saves
# nothing.
#
# The same bench then uses an emulated link that needs no core. Now the core is idle in the flat
# step while the link is busy, and overlapping uses this time as the formula predicts. So before you
# overlap, ask: *what moves the bytes, a core or a network card?*
#
# ## What to take away
#
# 1. Divide by the *global* number of samples, then add. Never average averages.
# 2. Bytes are not the whole story. All three ways send the same bytes; they differ in the number of
#    messages, and in the computation that runs meanwhile.
# 3. Only the last bucket cannot be hidden, so it should be small.
# 4. Overlapping helps if something other than the computing core moves the bytes.
#
# Next: how large a batch may be, in [lesson 21](21_large_batches.py), or [lesson 8](08_zero.py).
#
# **Try it:**
#
# 1. Set the bandwidth to 10 GB/s. Which way is the fastest, and by how much? What does `simulate`
#    predict?
# 2. Give one rank a `slowdown`: `Machine(..., slowdown={2: 2.0})`. Which ranks wait for it?
#
# <details><summary>Answers</summary>
#
# 1. Flat, 30.2 ms; overlapped takes 31.7 and per parameter 53.6, and `simulate` says the same. The
#    bytes cost hardly anything now, and each message still costs its latency of 300 µs.
# 2. All the others: each needs the gradients of every other. In the flat step of 67 ms they send
#    and wait for 39 ms, and the slow rank for 11 ms.
#
# </details>
#
# **Marked exercises:** `minidist exercise start uneven_shards`, `minidist exercise start buckets`.
