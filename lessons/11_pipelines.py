# %% [markdown]
# # 11. Pipelines: from naive to zero-bubble
#
# A model that does not fit on one machine can be cut: rank 0 holds the first layers, rank 1 the
# next ones, and so on. Each rank is a *stage*. A stage must wait for its input, and in the
# backward for its gradient. This lesson is about this waiting, and about six schedules.
#
# About 45 minutes. At the end you know how long stages wait, what makes the waiting shorter, what
# that costs in memory and messages, and how to write a schedule of your own.
#
# You need: lesson 0.

# %%
import matplotlib.pyplot as plt
import numpy as np

from minidist import LocalWorld, Machine, launch
from minidist.comm import Timeline, first_process, launched_size, print_once
from minidist.data import Batches, Dataset
from minidist.nn import CrossEntropy, Embedding, Linear, Sequential
from minidist.optim import SGD
from minidist.parallel import Pipeline, Serial, simulate
from minidist.parallel.pipeline import (
    SCHEDULES,
    Backward,
    Forward,
    InputGradient,
    Schedule,
    price_units,
)
from minidist.plots import save
from minidist.plots.pipeline import draw_price, draw_run, legend, measured_spans

P, M = 4, 8  # stages, microbatches

# %% [markdown]
# ## A schedule is a list
#
# A batch is cut into *microbatches*, which go through the stages one behind the other. The work of
# a stage, in order, is data: a list of `Forward(microbatch)` and `Backward(microbatch)`. Nothing is
# computed yet. Here is the list of stage 2 of 4 for four microbatches, in two schedules. The list
# does not contain messages, because they follow from it.

# %%
for name in ("gpipe", "1f1b"):
    order = [f"{type(w).__name__[0]}{w.microbatch}" for w in SCHEDULES[name].order(2, P, 4)]
    print_once(f"{name:12}", *order)

# %% [markdown]
# Four programs read this list: one proves that it can run, one predicts its time and memory, one
# draws it, one runs it. So the picture shows exactly the list that runs.
#
# ## Naive: one stage works at a time
#
# A whole batch goes through stage 0, then stage 1, ... and back. In all pictures grey is idle, and
# a backward takes two times as long as a forward, as it does for a linear layer: one product for
# the gradient of the input, one for the gradient of the weights.
#
# **Question 1.** What share of the time of four stages is idle?


# %%
def picture(names, m, path):
    """Draw predicted schedules below each other, on one time axis; and print them."""
    figure, rows = plt.subplots(
        len(names), 1, figsize=(12, 1.75 * len(names) + 0.5), squeeze=False, layout="constrained"
    )
    prices = [price_units(SCHEDULES[name], P, m) for name in names]
    longest = max(price.seconds for price in prices)
    for axes, name, price in zip(rows[:, 0], names, prices, strict=True):
        kept = max(price.peak_saved) / SCHEDULES[name].chunks
        draw_price(axes, price, f"{name}: {price.idle_fraction:.1%} idle, keeps {kept:g}")
        axes.set_xlim(0, longest)
        print_once(
            f"{name:14} a step takes {price.seconds:4g}, idle {price.idle_fraction:.1%}, "
            f"microbatches kept, at most: {kept:g}"
        )
    legend(figure, chunks=any(SCHEDULES[name].chunks > 1 for name in names))
    if first_process():
        print(f"picture: {save(figure, path)}")


picture(["naive"], 1, "out/lessons/11_pipelines_naive.png")

# %% [markdown]
# One of p stages works, so (p - 1)/p of all time is idle.
#
# ## GPipe and 1F1B
#
# **GPipe.** While stage 1 works on microbatch 0, stage 0 can already work on microbatch 1. All
# forwards come first, then all backwards. The stages still wait while the pipeline fills and
# drains: the *bubble*. Its share is (p - 1)/(m + p - 1), so more microbatches make it smaller. But
# a stage must keep the saved activations of *every* microbatch until its backward.
#
# **1F1B** ("one forward, one backward") runs each backward as soon as possible.
#
# **Question 2.** Many texts say that 1F1B makes the bubble smaller. With eight microbatches, which
# of the two ends first?

# %%
picture(["gpipe", "1f1b"], M, "out/lessons/11_pipelines_1f1b.png")

# %% [markdown]
# They end at the same time. But 1F1B keeps half as much, and its later stages even less. This is
# still useful: with the saved memory you can use more microbatches, and *these* make the bubble
# smaller.
#
# ## A smaller bubble: other work while a stage waits
#
# **Interleaved.** Each stage holds two small *chunks* of the model instead of one large one. The
# pipeline is full after the time of chunks, not of stages: half of the bubble, twice the messages.
#
# **Zero bubble.** A backward has two halves. The previous stage waits for the gradient of the
# *input*. No stage waits for the gradient of the *weights*. So the second half (violet) is done at
# a time when the stage would be idle.
#
# **Zero bubble, V.** Both ideas: two chunks for each stage, in the order of a V, down and up again.
# The last layers are on the first rank.
#
# **Question 3.** Which idle time must be left even then?

# %%
names = ["interleaved", "zero_bubble_h1", "zero_bubble_v"]
picture(names, M, "out/lessons/11_pipelines_zero_bubble.png")

# %% [markdown]
# Nothing can be done before the first microbatch arrives: stage 3 waits for three half forwards.
#
# ## Do they really run like that?
#
# So far these are predictions of lists. Now we train a real model. It has eight equal layers after
# an embedding table (a look-up costs no arithmetic), so its stages are equal. `simulate` runs a
# step of the method on a machine whose messages take no time, so all waiting comes from the
# schedule. `train` runs it with its numbers.

# %%
WIDTH = 32
random = np.random.default_rng(0)
words = Dataset("words", *random.integers(0, WIDTH, (2, 256)), classes=WIDTH)
batches = Batches(words, 64)
FREE = Machine(latency=0.0, bandwidth=float("inf"), flops=1e9)


def method(comm, schedule=None):
    """Training by a schedule, or serial; both add up the same microbatches."""
    layers = [Linear(WIDTH, WIDTH) for _ in range(2 * P)]
    model = Sequential(Embedding(WIDTH, WIDTH), *layers, input_shape=())
    if schedule is None:
        return Serial(model, CrossEntropy(), SGD(0.1), comm, microbatches=M)
    options = {"schedule": schedule, "microbatches": M}
    return Pipeline(model, CrossEntropy(), SGD(0.1), comm, **options)


def train(comm, schedule=None):
    """Losses and parameters after three steps, and messages of a step."""
    trained = method(comm, schedule)
    losses = [trained.step(batches[step]) for step in range(3)]
    sent = comm.trace.sent.messages / 3
    return losses, trained.parameters(), sent


serial = launch(train, 1, LocalWorld())[0]


def equal(found):
    """Whether losses and parameters are those of serial training, to the last bit."""
    same = all(np.array_equal(found[1][name], serial[1][name]) for name in serial[1])
    return "bit for bit" if same and found[0] == serial[0] else "NOT equal"


def kept(events):
    """The largest number of microbatches from their forward to the end of their backward."""
    work = [span.instruction for span in measured_spans(events)]
    steps = [1 if isinstance(w, Forward) else -1 for w in work if not isinstance(w, InputGradient)]
    return max(np.cumsum(steps))


print_once(f"p = {P}, m = {M}            idle                 microbatches kept     equal to")
print_once("schedule          measured  predicted   measured  predicted   serial")
runs = {}
for name in ("naive", "gpipe", "1f1b", "interleaved", "zero_bubble_h1", "zero_bubble_v"):
    chosen = SCHEDULES[name]
    ran = simulate(lambda comm, s=chosen: method(comm, s), batches, P, FREE, record=True)
    runs[name] = Timeline(ran.traces).events
    price = price_units(chosen, P, M)
    print_once(
        f"{name:16} {ran.idle_fraction:9.2%} {price.idle_fraction:10.2%} "
        f"{max(map(kept, runs[name])) / chosen.chunks:10g} "
        f"{max(price.peak_saved) / chosen.chunks:10g}   "
        f"{equal(launch(lambda comm, s=chosen: train(comm, s), P, LocalWorld())[0])}"
    )

# %% [markdown]
# Every schedule gives the parameters of serial training, to the last bit. The order of work on a
# *stage* does not matter, only the order in which a stage adds up its microbatches.
#
# Here are the traces of two runs, each below its predicted schedule:

# %%
figure, rows = plt.subplots(4, 1, figsize=(12, 7.5), layout="constrained")
for pair, name in zip((rows[:2], rows[2:]), ("1f1b", "zero_bubble_v"), strict=True):
    draw_price(pair[0], price_units(SCHEDULES[name], P, M), f"{name}: predicted")
    draw_run(pair[1], runs[name], f"{name}: measured")
legend(figure, chunks=True)
if first_process():
    print(f"picture: {save(figure, 'out/lessons/11_pipelines.png')}")

# %% [markdown]
# ## On real ranks
#
# So far every rank was simulated. The next lines run on the ranks that there are: four simulated
# ones under plain `python`, and real processes that send real messages under
#
#     minidist run -n 2 lessons/11_pipelines.py
#
# As many stages as ranks.
#
# **Question 4.** Microbatches are added up in the same order as in serial training. What must the
# gap to serial be?

# %%
kind = "real" if launched_size() else "simulated"
for name in ("gpipe", "1f1b", "zero_bubble_h1"):
    found = launch(lambda comm, s=SCHEDULES[name]: train(comm, s), 4)
    print_once(
        f"{len(found)} {kind} stages, {name:15} {found[0][2]:.0f} messages a step, "
        f"{equal(found[0])} serial"
    )

# %% [markdown]
# ## Your own schedule
#
# A schedule is a function of (stage, stages, microbatches) that yields `Forward` and `Backward`.
# This one is GPipe with the backward in reverse order: the activations of the last microbatch are
# still in the cache.
#
# **Question 5.** Is its bubble as large as GPipe's? Does it equal serial training bit for bit?


# %%
def mine(stage, stages, microbatches):
    for microbatch in range(microbatches):
        yield Forward(microbatch)
    for microbatch in reversed(range(microbatches)):
        yield Backward(microbatch)


found = launch(lambda comm: train(comm, Schedule(mine)), P, LocalWorld())[0]
print_once(f"mine: idle {price_units(Schedule(mine), P, M).idle_fraction:.1%}, {equal(found)}")

# %% [markdown]
# It is idle as long as GPipe. But it adds up the same gradients in another order, and
# floating-point sums depend on the order.
#
# ## Try it
#
# 1. Write a 1F1B that lets every stage run one microbatch further ahead. What happens to memory
#    and to the idle share? And with slow messages, `price_units(..., message=0.5)`?
# 2. Split the backward of `mine` into `InputGradient` and `WeightGradient`, with all weight
#    gradients at the end. What happens to the bubble?
# 3. Let stage 0 yield `Backward(1)` before `Forward(1)`. What does `price_units` say?
# 4. How many microbatches does 1F1B need on 4 stages to be less than 5 % idle? And ZB-V? First use
#    the formulas (p - 1)/(m + p - 1) and (p - 1)/(6m + p - 1), then `minidist plan pipeline
#    --stages 4 --microbatches 32`.
#
# <details><summary>Answers</summary>
#
# 1. The first line becomes `warm_up = min(stages - stage, microbatches)`; each stage keeps one
#    microbatch more. With free messages the idle share stays 27.3 %. With slow ones it falls from
#    41.5 to 40.0 %: a stage has work left while a message is under way.
# 2. It falls from 27.3 to 20.0 %: gradients of inputs reach the first stage sooner, and the weight
#    gradients fill the time at the end. `zero_bubble_h1` reaches 11.1 % and keeps half as much.
# 3. A schedule that cannot run is refused before anything is sent: "stage 0 can never run
#    Recv(what='gradient', microbatch=1, ...)". The gradient needs a forward that comes only later.
# 4. More than 19(p - 1) = 57, so 58. ZB-V: a sixth of that, so 10.
#
# </details>
#
# **Marked exercise:** `minidist exercise start one_f_one_b`.
