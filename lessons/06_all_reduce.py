# %% [markdown]
# # 6. All-reduce, seven ways
#
# Every rank has an array. Afterwards every rank has the *sum* of all of them. This is an
# **all-reduce**. Data parallel training is built on it: there the arrays are gradients.
#
# There are many ways to do it, and they differ a lot. In this lesson we write two of them, take
# five more from the package, predict the cost of each, and find out which is the fastest, and when.
#
#     python lessons/06_all_reduce.py                  ranks in one process
#     mpirun -n 4 python lessons/06_all_reduce.py      4 real processes
#
# You need: lesson 5.

# %%
import matplotlib.pyplot as plt
import numpy as np

from minidist import LocalWorld, Machine, launch
from minidist.collectives import ALL_REDUCE, all_reduce, auto
from minidist.collectives.shared import symmetric_memory
from minidist.comm import Link, Timeline, first_process, print_once
from minidist.comm.timeline import draw_timeline
from minidist.plots import save

# %% [markdown]
# ## One: central
#
# All ranks send to rank 0; it adds the arrays and sends the sum back.


# %%
def central(comm, array):
    incoming = np.empty_like(array)
    if comm.rank == 0:
        for peer in range(1, comm.size):
            comm.recv(incoming, peer)
            array += incoming
        for peer in range(1, comm.size):
            comm.send(array, peer)
    else:
        comm.send(array, 0)
        comm.recv(array, 0)


def try_it(comm, algorithm):
    array = np.arange(8.0) + 10 * comm.rank
    algorithm(comm, array)
    return array


print_once("central:", launch(lambda comm: try_it(comm, central), ranks=4)[-1])

# %% [markdown]
# It works. But all messages go through the link of *one* rank: with p ranks and n bytes, 2(p − 1)
# messages of n bytes, one after another. Twice as many ranks take twice as long, while all the
# other links are idle.
#
# ## Two: a ring
#
# Cut the array into p chunks. All ranks send one chunk to the right, at the same time, and add the
# chunk that comes from the left. After p − 1 rounds every rank has *one chunk* of the final sum. In
# p − 1 more rounds these chunks are sent around the ring.


# %%
def ring(comm, array):
    chunks = np.array_split(array, comm.size)  # views: writing a chunk writes the array
    right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    incoming = np.empty_like(chunks[0])
    for round in range(comm.size - 1):  # reduce-scatter
        outgoing = chunks[(comm.rank - round) % comm.size]
        growing = chunks[(comm.rank - round - 1) % comm.size]
        comm.sendrecv(outgoing, right, incoming[: growing.size], left)
        growing += incoming[: growing.size]
    for round in range(comm.size - 1):  # all-gather
        outgoing = chunks[(comm.rank + 1 - round) % comm.size]
        comm.sendrecv(outgoing, right, chunks[(comm.rank - round) % comm.size], left)


print_once("ring:   ", launch(lambda comm: try_it(comm, ring), ranks=4)[-1])

# %% [markdown]
# Each rank sends 2(p − 1) chunks of n/p bytes: **2n(p − 1)/p**, which is less than 2n for *any
# number of ranks*, and no algorithm can send less. This is why rings are used for large models.
#
# But it takes 2(p − 1) rounds, and each round costs a latency α.
#
# ## Five more
#
# - **binomial**: reduce along a tree, broadcast along the same tree: 2 lg p rounds, but n bytes in
#   each.
# - **recursive doubling**: exchange *everything* with a partner 1 away, then 2, then 4: lg p
#   rounds, the fewest.
# - **halving and doubling**: exchange *halves*, quarters, eighths, and back: 2 lg p rounds, and
#   only the ring's bytes. (A power of two is best.)
# - **segmented ring**: the ring in pieces, so that one piece is added while the next is sent.
# - **double tree**: two trees, each for half of the array; a rank that passes messages on in one
#   is a leaf of the other.
#
# Each has its own file in `minidist/collectives/`, with a drawing and its formula. First we check
# the most important property: *they all give the same sum*.

# %%
SEVEN = [
    "central",
    "binomial",
    "recursive_doubling",
    "ring",
    "segmented_ring",
    "halving_doubling",
    "double_tree",
]


def check(comm, name):
    array = np.arange(1000.0) * (comm.rank + 1)
    all_reduce(comm, array, algorithm=name)
    expected = np.arange(1000.0) * sum(range(1, comm.size + 1))
    return np.array_equal(array, expected), comm.trace.sent.messages, comm.trace.sent.nbytes


print_once(f"{'':20} {'correct':>8} {'messages, by rank':>20} {'bytes, by rank':>28}")
for name in SEVEN:
    results = launch(lambda comm, name=name: check(comm, name), ranks=4)
    correct = all(result[0] for result in results)
    messages = " ".join(f"{result[1]:3}" for result in results)
    nbytes = " ".join(f"{result[2]:6}" for result in results)
    print_once(f"{name:20} {correct!s:>8} {messages:>20} {nbytes:>28}")

# %% [markdown]
# Look at the last two columns. In *central*, rank 0 sends three times as much as the others. In the
# ring all ranks send the same. Recursive doubling sends the fewest messages, halving and doubling
# the fewest bytes in few messages.
#
# ## See them
#
# The local world can draw a run: a row for each rank and an arrow for each message. A rank is pale
# while it communicates, and dark while it adds. The array has 2 MB; all pictures have the same
# scale.

# %%
machine = Machine("slow cables", latency=50e-6, bandwidth=117e6, reduce_bandwidth=1e9)


def simulate(name, ranks, length, record=False):
    world = LocalWorld(machine, record=record)

    def run(comm):
        all_reduce(comm, np.ones(length, np.float32), algorithm=name)

    launch(run, ranks=ranks, world=world)
    return world


if first_process():
    worlds = {name: simulate(name, 4, 500_000, record=True) for name in SEVEN}
    longest = max(world.seconds for world in worlds.values()) * 1e3
    figure, axes = plt.subplots(len(SEVEN), 1, figsize=(12, 14))
    for panel, (name, world) in zip(axes, worlds.items(), strict=True):
        timeline = Timeline(world.traces)
        title = f"{name.replace('_', ' ')}: {world.seconds * 1e3:.1f} ms"
        draw_timeline(panel, timeline.events, title, timeline.arrows(), steps=True, legend="right")
        panel.set_xlim(0, longest)
        panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    print(f"picture: {save(figure, 'out/lessons/06_all_reduce_timelines.png')}")

# %% [markdown]
# ## Predict them
#
# Every algorithm has a formula of α, β and γ (seconds to add a byte). We compare it with the
# simulated clock: they agree to the last digit. So the formulas can tell us the fastest algorithm,
# also at sizes that would take long to simulate.

# %%
print_once(f"{'16 ranks, 40 KB':20} {'clock':>12} {'formula':>12}")
for name in SEVEN:
    clock = simulate(name, 16, 10_000).seconds
    costs = [ALL_REDUCE[name].cost(10_000, 4, rank, 16, machine) for rank in range(16)]
    formula = max(cost.seconds for cost in costs)
    print_once(f"{name:20} {clock * 1e3:9.4f} ms {formula * 1e3:9.4f} ms")

# %%
if first_process():
    STYLE = {"segmented_ring": "--"}  # it often lies on the ring's line
    figure, axes = plt.subplots(1, 2, figsize=(13, 5.2))
    lengths = np.unique((2.0 ** np.arange(1, 25)).astype(int))
    for name in SEVEN:
        times = [ALL_REDUCE[name].cost(int(n), 4, 0, 16, machine).seconds * 1e3 for n in lengths]
        axes[0].loglog(lengths * 4, times, STYLE.get(name, "-"), label=name.replace("_", " "))
    axes[0].set_title("16 ranks: time by size", loc="left")
    axes[0].set_xlabel("bytes")
    counts = [2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
    for name in SEVEN:
        times = [ALL_REDUCE[name].cost(2**20, 4, 0, p, machine).seconds * 1e3 for p in counts]
        axes[1].loglog(counts, times, STYLE.get(name, "-"), label=name.replace("_", " "))
    axes[1].set_xscale("log", base=2)
    axes[1].set_title("4 MB: time by number of ranks", loc="left")
    axes[1].set_xlabel("ranks")
    for panel in axes:
        panel.set_ylabel("ms")
        panel.spines[["top", "right"]].set_visible(False)
    axes[1].legend(frameon=False)
    figure.tight_layout()
    print(f"picture: {save(figure, 'out/lessons/06_all_reduce.png')}")

# %% [markdown]
# Left: **small arrays need few rounds** (recursive doubling), **large arrays need few bytes** (a
# ring, or halving and doubling). The lines cross where latency and bandwidth cost the same. Right:
# with many ranks the latency of the ring grows, and that of the logarithmic algorithms hardly does.
# Central is the straight line to the top.
#
# In the simulator `algorithm="auto"` evaluates these formulas, and takes the smallest. On real
# ranks it measures the algorithms before its first call.

# %%
for length in (10, 10_000, 10_000_000):
    name = auto.by_formula(length, 4, 16, machine)
    print_once(f"{length * 4:>12,} bytes on 16 ranks: {name}")

# %% [markdown]
# ## Two levels
#
# Real machines have fast links inside a node and slow links between nodes. *Hierarchical* first
# sums inside each node, so that only a small part is sent over the slow links.

# %%
two_levels = Machine(
    "two levels",
    latency=3e-6,
    bandwidth=100e9,
    reduce_bandwidth=500e9,
    node=4,
    network=Link(latency=30e-6, bandwidth=5e9),
)
for name in ("ring", "hierarchical"):
    world = LocalWorld(two_levels)
    launch(
        lambda comm, name=name: all_reduce(comm, np.ones(250_000, np.float32), algorithm=name),
        ranks=16,
        world=world,
    )
    print_once(f"{name:13} {world.seconds * 1e6:8.1f} µs on 4 nodes of 4")

# %% [markdown]
# ## Shared memory
#
# Ranks on one machine can share memory. `shared_memory` copies through shared buffers, and sends
# only empty messages, for synchronisation. If the arrays *themselves* are in shared memory, no
# copies are needed: rank r adds chunk r of all arrays in place, and writes the sum into all arrays.
# This is `symmetric_memory`; NCCL calls such arrays registered buffers.


# %%
def seen_by_all(comm):
    array = symmetric_memory.allocate(comm, 8)  # instead of np.empty(8)
    array[:] = np.arange(8) + 10 * comm.rank
    before = comm.trace.sent.messages, comm.trace.sent.nbytes
    symmetric_memory.all_reduce(comm, array)
    messages = comm.trace.sent.messages - before[0]
    return array.tolist(), messages, comm.trace.sent.nbytes - before[1]


total, messages, nbytes = launch(seen_by_all, ranks=4)[-1]
print_once(f"symmetric: {total}\n{messages} messages a rank, {nbytes} bytes in them")

# %% [markdown]
# On two cores, from 4 MB up, symmetric memory has 2.5 to 3.6 times the bandwidth of the MPI
# library's all-reduce (measured with MPICH 5.0.2 on an AMD EPYC, see docs/collectives.md).
#
# ## Try it
#
# 1. In both `sendrecv` calls of `ring`, exchange `right` and `left`. Does it still work? Why?
# 2. In `ring`, forget the last round of the reduce-scatter (`range(comm.size - 2)`), and then of
#    the all-gather. Which chunks are wrong, on which ranks?
# 3. Give `machine` one slow link: `links={(2, 3): Link(50e-6, 10e6)}`. Which algorithm suffers
#    most, and which hardly changes?
# 4. Measure your own machine, and compare with the MPI library: `minidist bench collectives --ranks
#    2`.
#
# <details><summary>Answers</summary>
#
# 1. It runs, and the sums are wrong: the chunk that comes from the right is not the one to which
#    it is added. The chunks must go round in the other direction too: + in place of - before
#    `round`.
# 2. Without the last round of the reduce-scatter no chunk has all four arrays in it: all are wrong,
#    on all ranks. Without that of the all-gather each rank lacks one chunk, the last that it would
#    have received.
#
# </details>
#
# **Marked exercises:** `minidist exercise start central`, `minidist exercise start ring`, `minidist
# exercise start halving_doubling`.
