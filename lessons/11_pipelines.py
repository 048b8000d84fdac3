# %% [markdown]
# # 11. Pipelines: from naive to zero-bubble
#
# A model that does not fit on one machine can be cut: rank 0 holds the first layers, rank 1 the
# next ones, and so on. Each rank is a *stage*. A stage must wait for its input, and in the
# backward for its gradient. This lesson is about this waiting, and about six schedules.
#
#     python lessons/11_pipelines.py
#     mpirun -n 4 python lessons/11_pipelines.py
#
# You need: lesson 0.

# %%
import matplotlib.pyplot as plt
import numpy as np

from minidist import LocalWorld, Machine, launch
from minidist.comm import first_process, launched_size, print_once
from minidist.data import Batches, Dataset
from minidist.nn import CrossEntropy, Embedding, Linear, Sequential
from minidist.optim import SGD
from minidist.parallel import Pipeline, Serial
from minidist.parallel.pipeline import (
    SCHEDULES,
    Backward,
    Forward,
    Schedule,
    ScheduleError,
    price_units,
)
from minidist.plots import save
from minidist.plots.pipeline import draw_price, draw_run, legend

P, M = 4, 8  # stages, microbatches

# %% [markdown]
# ## A schedule is a list
#
# The work of a stage, in order, is data: a list of `Forward(microbatch)` and
# `Backward(microbatch)`. Nothing is computed yet. Here is the list of stage 2 of 4 for four
# microbatches, in two schedules. The list does not contain messages, because they follow from it.

# %%
for name in ("gpipe", "1f1b"):
    order = SCHEDULES[name].order(2, P, 4)
    print_once(
        f"{name:12}", " ".join(f"{type(work).__name__[0]}{work.microbatch}" for work in order)
    )

# %% [markdown]
# Four programs read this list. One proves that it can run. One predicts its time and memory. One
# draws it. One runs it. So the picture shows exactly the list that runs.
#
# ## Naive: one stage works at a time
#
# A whole batch goes through stage 0, then stage 1, ... and back. Grey is idle. (In all pictures a
# backward takes two times as long as a forward, as it does for a linear layer: one product for the
# gradient of the input, one for the gradient of the weights.)


# %%
def picture(names, m, path):
    """Draw predicted schedules below each other, on one time axis."""
    figure, rows = plt.subplots(
        len(names), 1, figsize=(12, 1.75 * len(names) + 0.5), squeeze=False, layout="constrained"
    )
    prices = [price_units(SCHEDULES[name], P, m) for name in names]
    longest = max(price.seconds for price in prices)
    for axes, name, price in zip(rows[:, 0], names, prices, strict=True):
        kept = max(price.peak_saved) / SCHEDULES[name].chunks
        draw_price(axes, price, f"{name}: {price.idle_fraction:.1%} idle, keeps {kept:g}")
        axes.set_xlim(0, longest)
    figure.get_layout_engine().set(rect=(0, 0.5 / figure.get_figheight(), 1, 1))
    legend(figure, chunks=any(SCHEDULES[name].chunks > 1 for name in names))
    if first_process():
        save(figure, path)


picture(["naive"], 1, "out/lessons/11_pipelines_naive.png")
naive = price_units(SCHEDULES["naive"], P, 1)
print_once(
    f"naive: {naive.idle_fraction:.0%} of all time is idle; formula (p - 1)/p = {(P - 1) / P:.0%}"
)

# %% [markdown]
# ## GPipe: cut the batch into microbatches
#
# While stage 1 works on microbatch 0, stage 0 can already work on microbatch 1. The stages still
# wait while the pipeline fills and drains: the *bubble*. Its share is (p - 1)/(m + p - 1), so more
# microbatches make it smaller. But a stage must keep the saved activations of *every* microbatch
# until its backward.
#
# ## 1F1B saves memory, but no time
#
# 1F1B ("one forward, one backward") runs each backward as soon as possible. Many texts say that it
# makes the bubble smaller. Look at the two pictures: they end at the same time.

# %%
picture(["gpipe", "1f1b"], M, "out/lessons/11_pipelines_1f1b.png")
for name in ("gpipe", "1f1b"):
    price = price_units(SCHEDULES[name], P, M)
    print_once(
        f"{name:12} step takes {price.seconds:g}, idle {price.idle_fraction:.1%}, "
        f"microbatches kept by stage: {price.peak_saved}"
    )

# %% [markdown]
# The same time, and half of the memory or less. This is still useful: with the saved memory you can
# use more microbatches, and *these* make the bubble smaller.
#
# ## A smaller bubble: other work while a stage waits
#
# **Interleaved.** Each stage holds two small chunks of the model instead of one large one. The
# pipeline is full after the time of chunks, not of stages: half of the bubble, twice the messages.
#
# **Zero bubble.** A backward has two halves. The previous stage waits for the gradient of the
# *input*. No stage waits for the gradient of the *weights*. So the second half (violet) is done at
# a time when the stage would be idle.
#
# **Zero bubble, V.** Both ideas: two chunks for each stage, in the order of a V, down and up again.
# The last layers are on the first rank. The rest of the bubble is the time until the first
# microbatch reaches each stage.

# %%
picture(
    ["interleaved", "zero_bubble_h1", "zero_bubble_v"],
    M,
    "out/lessons/11_pipelines_zero_bubble.png",
)

# %% [markdown]
# ## Do they really run like that?
#
# So far these are predictions. Now we train a real model. It has eight equal layers after an
# embedding table (a look-up costs no arithmetic), so its stages are equal. The local world
# simulates a machine on which messages take no time, so all waiting comes from the schedule.

# %%
WIDTH = 32
random = np.random.default_rng(0)
words = Dataset(
    "words", random.integers(0, WIDTH, 256), random.integers(0, WIDTH, 256), classes=WIDTH
)
FREE = Machine(latency=0.0, bandwidth=float("inf"), flops=1e9)


def equal_layers():
    layers = [Linear(WIDTH, WIDTH) for _ in range(2 * P)]
    return Sequential(Embedding(WIDTH, WIDTH), *layers, input_shape=())


def even_bounds(parts):
    each = 2 * P // parts
    return [(part * each + (part > 0), (part + 1) * each + 1) for part in range(parts)]


def measure(schedule):
    """Train one step: what every rank did, the idle share, microbatches kept, the loss gap."""

    def run(comm):
        method = Pipeline(
            equal_layers(),
            CrossEntropy(),
            SGD(0.1),
            comm,
            schedule=schedule,
            microbatches=M,
            bounds=even_bounds(P * schedule.chunks),
        )
        batch = Batches(words, 64)[0]
        comm.barrier()
        start, busy = comm.time(), comm.trace.busy
        comm.trace.events.clear()
        comm.trace.record = True
        loss = method.step(batch)
        end = comm.time()
        comm.trace.computed(end)
        comm.trace.record = False
        events, worked = list(comm.trace.events), comm.trace.busy - busy
        alone = comm.split(comm.rank)
        serial = Serial(equal_layers(), CrossEntropy(), SGD(0.1), alone, microbatches=M)
        equal = serial.step(batch) == loss
        found, expected = method.parameters(), serial.parameters()
        equal = equal and all(np.array_equal(found[name], expected[name]) for name in expected)
        return events, worked, end - start, equal

    results = launch(run, P, LocalWorld(FREE))
    seconds = max(result[2] for result in results)
    idle = 1 - sum(result[1] for result in results) / (P * seconds)
    return [result[0] for result in results], idle, all(result[3] for result in results)


def kept_measured(timelines, chunks):
    """The largest number of microbatches between forward and end of backward, in the trace."""
    most = 0
    for events in timelines:
        under_way, peak = 0, 0
        for event in events:
            if event.kind == "compute" and event.name.startswith("forward"):
                under_way += 1
            peak = max(peak, under_way)
            if event.kind == "compute" and event.name.startswith(("backward", "weight")):
                under_way -= 1
        most = max(most, peak)
    return most / chunks


print_once(f"p = {P}, m = {M}            idle                 microbatches kept     equal to")
print_once("schedule          measured  predicted   measured  predicted   serial")
runs = {}
for name in ("naive", "gpipe", "1f1b", "interleaved", "zero_bubble_h1", "zero_bubble_v"):
    schedule = SCHEDULES[name]
    timelines, idle, equal = measure(schedule)
    price = price_units(schedule, P, M)
    kept, predicted = kept_measured(timelines, schedule.chunks), max(price.peak_saved)
    runs[name] = timelines
    print_once(
        f"{name:16} {idle:9.2%} {price.idle_fraction:10.2%} {kept:10g} "
        f"{predicted / schedule.chunks:10g}   {'bit for bit' if equal else 'NO'}"
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
    start = min(event.start for events in runs[name] for event in events if event.kind == "compute")
    draw_run(pair[1], runs[name], f"{name}: measured")
    pair[1].set_xlim(start, max(e.end for events in runs[name] for e in events))
figure.get_layout_engine().set(rect=(0, 0.06, 1, 0.94))
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
# As many stages as ranks. **Question.** Microbatches are added up in the same order as in serial
# training. What must the gap to serial be?


# %%
def on_these_ranks(comm):
    batches = Batches(words, 64)
    rows = {}
    for name in ("gpipe", "1f1b", "zero_bubble_h1"):
        before = comm.trace.sent.messages
        method = Pipeline(
            equal_layers(), CrossEntropy(), SGD(0.1), comm, schedule=name, microbatches=M
        )
        losses = [method.step(batches[step]) for step in range(3)]
        rows[name] = losses, (comm.trace.sent.messages - before) / 3
    return rows


def alone(comm):
    method = Serial(equal_layers(), CrossEntropy(), SGD(0.1), comm, microbatches=M)
    return [method.step(Batches(words, 64)[step]) for step in range(3)]


found = launch(on_these_ranks, 4)
serial = launch(alone, 1, LocalWorld())[0]
kind = "real" if launched_size() else "simulated"
for name, (losses, messages) in found[0].items():
    same = "bit for bit serial" if losses == serial else "not serial"
    print_once(f"{len(found)} {kind} stages, {name:15} {messages:.0f} messages a step, {same}")

# %% [markdown]
# ## Exercise: write your own schedule
#
# A schedule is a function of (stage, stages, microbatches) that yields `Forward` and `Backward`.
# This one is GPipe with the backward in reverse order: the activations of the last microbatch are
# still in the cache. It has ten lines, and validator, pricer, plotter and executor all accept it.


# %%
def mine(stage, stages, microbatches):
    for microbatch in range(microbatches):
        yield Forward(microbatch)
    for microbatch in reversed(range(microbatches)):
        yield Backward(microbatch)


price = price_units(Schedule(mine), P, M)
_, idle, equal = measure(Schedule(mine))
print_once(
    f"mine: idle {idle:.1%}, predicted {price.idle_fraction:.1%}; bit for bit serial: {equal}"
)

# %% [markdown]
# It is idle as long as GPipe. But it no longer equals serial training *bit for bit*: it adds up the
# same gradients in another order, and floating-point sums depend on the order.
#
# A schedule that cannot run is refused before anything is sent; the error has the wrong
# instruction. Here every stage finishes microbatch 0 before it begins with 1, but the first stage
# runs its backward too early:


# %%
def broken(stage, stages, microbatches):
    for microbatch in range(microbatches):
        if stage == 0 and microbatch > 0:
            yield Backward(microbatch)
            yield Forward(microbatch)
        else:
            yield Forward(microbatch)
            yield Backward(microbatch)


try:
    price_units(Schedule(broken), 2, 2)
except ScheduleError as error:
    print_once("refused:", error)

# %% [markdown]
# Exercises:
#
# 1. Write a 1F1B that lets every stage run one microbatch further ahead. What happens to memory
#    and to the idle share? And with slow messages, `price_units(..., message=0.5)`?
# 2. Split the backward of your schedule into `InputGradient` and `WeightGradient`. How small can
#    you make the bubble with no more memory than 1F1B?
# 3. `minidist plan pipeline --stages 8 --microbatches 32` predicts all of this for larger sizes.
#    How many microbatches does 1F1B need to be less than 5 % idle? And ZB-V?
#
# **Marked exercise:** `minidist exercise start one_f_one_b`.
