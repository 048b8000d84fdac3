# %% [markdown]
# # 0. One model, five ways
#
# A model can be trained on one machine or on a thousand, and the parameters should be the same. The
# differences are *who holds what*, *who sends what to whom*, and *who waits*.
#
# In this lesson we train one small network in five ways, and look at exactly these three things.
#
# About 20 minutes. At the end you know five ways to divide the work of training, and what each of
# them sends, holds and waits for.
#
# There are two ways to run the lesson, with the same code:
#
#     python lessons/00_one_model_five_ways.py                  4 ranks in one process
#     mpirun -n 4 python lessons/00_one_model_five_ways.py      4 real processes
#
# A *rank* is one of the workers, numbered 0, 1, 2, 3. Under `mpirun` every rank runs this file from
# top to bottom, so `print_once` prints on one of them only, and `first_process()` is true on one
# only. The messages are then real, on as many ranks as there are; the part "Who waits?" is
# simulated.
#
# You need: Python. And these words, which lessons 1 to 3 explain: a network has *parameters*, the
# numbers that training changes. The *loss* says how wrong the network is on a *batch* of samples;
# the *forward* computes it. The *backward* computes the *gradient*: for each parameter, how the
# loss changes if the parameter does. The *optimizer* then takes a *step*: it changes the parameters
# a little, against the gradient.

# %%
import matplotlib.pyplot as plt
import numpy as np

from minidist import LocalWorld, Machine, launch
from minidist.collectives import ring
from minidist.comm import first_process, print_once
from minidist.comm.timeline import draw_timeline
from minidist.compare import compare
from minidist.data import Batches, fashion_mnist
from minidist.inspect import accuracy
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import SGD
from minidist.parallel import DataParallel, ParameterServer, Pipeline, Serial
from minidist.plots import save

STEPS = 40
training, test = fashion_mnist()
print_once(f"{len(training):,} images of {training.input_shape} pixels to learn from")
print_once(mlp())

# %% [markdown]
# ## First way: serial
#
# One rank does everything: forward, backward, and a step of the optimizer. All other ways must give
# the same losses, so we keep them. (`comm.split(comm.rank)` makes a group of this rank alone.)
#
# `mlp()` only *declares* the network. A training method decides which part of it a rank holds, and
# gives that part memory and its first values. The values depend only on the seed and the
# parameter's name, so any rank can build any part. (`init(0)` does that with seed 0, and `load`
# puts trained parameters in their place.)


# %%
def train_serially(comm):
    method = Serial(mlp(), CrossEntropy(), SGD(0.05, momentum=0.9), comm.split(comm.rank))
    batches = Batches(training, size=128, seed=0)
    losses = [method.step(batches[step]) for step in range(STEPS)]
    return losses, method.parameters()


serial_losses, serial_parameters = launch(train_serially, ranks=1)[0]
before = accuracy(mlp().init(0), test)
after = accuracy(mlp().init().load(serial_parameters), test)
print_once(f"loss {serial_losses[0]:.3f} → {serial_losses[-1]:.3f}")
print_once(f"test accuracy {before:.1%} → {after:.1%} after {STEPS} steps")

# %% [markdown]
# ## Ranks and messages
#
# All other ways use the same tool. `launch(function, ranks=4)` runs `function(comm)` on four ranks.
# `comm` has the rank's own number, the number of ranks, and functions to send and receive arrays.
#
# An *all-reduce* adds up an array over all ranks; then each rank has the sum. Here the ranks begin
# with 1, 2, 3 and 4. **Question 1.** Which number has each rank at the end? And how many messages
# must a rank send for it?


# %%
def everyone_adds(comm):
    array = np.full(4, float(comm.rank + 1))
    ring.all_reduce(comm, array)
    return array, comm.trace.sent.messages


for rank, (array, messages) in enumerate(launch(everyone_adds, ranks=4)):
    print_once(f"rank {rank} began with {rank + 1}, has {array}, and sent {messages} messages")

# %% [markdown]
# The sum, 10. No rank sent to all others: each sent only to its right neighbour, 2(p − 1) times for
# p ranks. Lesson 6 explains how this works.
#
# ## Second way: data parallel
#
# Every rank holds the *whole model* and works on its part of the batch, its *shard*. The gradients
# are added up by an all-reduce, and every rank takes the same step:
#
#     zero the gradients
#     loss = forward and backward on my shard of the batch
#     all_reduce(gradients)
#     optimizer step
#
# ## Third way: parameter server
#
# Rank 0 is the *server* and owns the parameters. The workers push gradients to it. The server adds
# them, steps the optimizer, and sends the new parameters back.
#
# ## Fourth and fifth way: pipelines
#
# Every rank holds a *few layers*. Their results, the *activations*, are sent from rank to rank, and
# gradients are sent back. In the naive pipeline one rank works while the others wait. GPipe cuts
# the batch into parts, *microbatches*, so that a rank can begin the next one while its neighbour
# works on the one before.
#
# All of them have the same interface: `step(batch)` takes the global batch and returns the global
# loss. So one function can train them all. It counts what a rank holds: parameters, gradients, and
# the optimizer's numbers.
#
# **Question 2.** Which way has the rank that sends the most bytes, and which way sends the least?
# Which way lets a rank hold less than the whole model?


# %%
def train(comm, method_class, **options):
    method = method_class(mlp(), CrossEntropy(), SGD(0.05, momentum=0.9), comm, **options)
    batches = Batches(training, size=128, seed=0)
    losses = [method.step(batches[step]) for step in range(STEPS)]
    sent = comm.trace.sent.nbytes
    held = sum(array.nbytes for arrays in method.arrays().values() for array in arrays)
    return losses, sent / STEPS, held, method.parameters()


ways = {
    "data parallel": (DataParallel, {}),
    "parameter server": (ParameterServer, {}),
    "naive pipeline": (Pipeline, {"schedule": "naive", "microbatches": 1}),
    "GPipe": (Pipeline, {"schedule": "gpipe", "microbatches": 4}),
}
print_once(
    f"{'':18}{'largest loss gap':>18}{'KB sent a step, by rank':>36}{'MB held, by rank':>26}"
)
for name, (method_class, options) in ways.items():
    results = launch(lambda comm, c=method_class, o=options: train(comm, c, **o), ranks=4)
    gap = max(abs(a - b) / b for a, b in zip(results[0][0], serial_losses, strict=True))
    sent = " ".join(f"{result[1] / 1e3:7.0f}" for result in results)
    held = " ".join(f"{result[2] / 1e6:5.1f}" for result in results)
    print_once(f"{name:18}{gap:18.1e}{sent:>36}{held:>26}")

# %% [markdown]
# Read the table by column.
#
# - **The loss gap is rounding.** Float32 has about seven digits. Adding the same numbers in another
#   order changes the last digit; nothing else differs. In float64 the gap is about 1e-15.
# - **Bytes.** A rank of the ring sends about twice the n bytes of the model, *whatever the number
#   of ranks*: 2n(p − 1)/p. The server sends the whole model to each worker, so its bytes grow with
#   the workers. The pipelines send activations instead of gradients: for this model, far less.
# - **Memory.** With data parallelism and with the server, every rank holds the whole model. A
#   pipeline rank holds only its own layers; here the first layer is the largest.
#
# ## Who waits?
#
# The table lacks time. In the *local world* ranks run on a virtual clock, for a `Machine` that we
# describe. A message of n bytes takes α + n·β: α is the `latency`, the time of an empty message,
# and β the time of a byte, 1 / `bandwidth`. Computing takes its number of operations (*FLOPs*)
# divided by `flops`, and adding arrays takes their bytes divided by `reduce_bandwidth`. So a laptop
# can simulate a cluster, and the same program gives the same times each time.
#
# `compare` runs several methods on such a machine, and serial training first. *Idle* is the share
# of a step in which a rank waits. (`bsp`, bulk synchronous, is the server of above: all wait for
# all.)
#
# **Question 3.** On this slow network, which of the four ways are faster than one rank alone? None
# is four times as fast: why not?

# %%
network = Machine("gigabit", latency=30e-6, bandwidth=125e6, reduce_bandwidth=4e9, flops=5e9)
names = ["data_parallel/ring", "parameter_server/bsp", "pipeline/naive", "pipeline/gpipe"]
report, timelines = compare(names, "mlp", steps=3, ranks=4, world=LocalWorld(network))
for row in report["rows"]:
    print_once(
        f"{row['method'] + ' ' + (row['variant'] or ''):24}"
        f"{row['step_seconds'] * 1e3:7.1f} ms a step, "
        f"idle {row['idle_fraction']:.1%}, predicted {row['predicted_idle_fraction']:.1%}"
    )

# %%
if first_process():
    figure, axes = plt.subplots(5, 1, figsize=(11, 9), height_ratios=[1, 3, 3, 3, 3])
    longest = max(event.end for timeline in timelines.values() for e in timeline for event in e)
    for panel, (name, events) in zip(axes, timelines.items(), strict=True):
        draw_timeline(panel, events, name.replace("/", ", ").replace("_", " "))
        panel.set_xlim(0, longest * 1e3)  # one scale for all, to compare lengths
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle("One step on a gigabit network: green forward, blue backward, thin = waiting")
    figure.tight_layout()
    print(f"picture: {save(figure, 'out/lessons/00_one_model_five_ways.png')}")

# %% [markdown]
# Four ranks, and the fastest is far from four times as fast as one. The uppermost row is serial
# training.
#
# - **Data parallel** computes in a quarter of the time. But on this slow network sending the
#   gradients takes longer than computing them.
# - **The parameter server** sends all gradients through one port: slower than a single rank.
# - **The naive pipeline** is also slower than a single rank: only one rank works at a time, and
#   messages take extra time.
# - **GPipe** overlaps its stages. There are two reasons for the remaining idle time: filling and
#   draining the pipeline, and unequal stages, because the first layer has most of the work.
#
# This course is about these differences. No way is always best: each needs different bytes, memory
# and time. But you can *calculate* which one suits a machine before you rent a thousand of them.
#
# ## What to take away
#
# 1. The ways differ in who holds what, who sends what to whom, and who waits; the parameters are
#    the same.
# 2. Bytes, memory and time can be calculated, and then measured.
#
# **Try it:**
#
# 1. Set `bandwidth=10e9`. Which way is fastest now? Is it nearly four times as fast as one rank?
#    Why?
# 2. Train on 3 ranks: in the cell with the table, `ranks=3`. 128 images do not divide by 3: does
#    the loss gap grow?
# 3. `minidist compare --ranks 4` runs all of this on real processes, with a table and a picture.
#
# <details><summary>Answers</summary>
#
# 1. Data parallel: 10.9 ms in place of 41.1, so 3.8 times as fast as one rank. Its messages now
#    take hardly any time. The pipelines gain little: their stages are as unequal as before.
# 2. No: shards of 43, 43 and 42 images are each divided by 128, the size of the whole batch. So the
#    gradients of three ranks add up to the same mean. The gap is rounding.
#
# </details>
#
# Next: `01_autograd.py`.
