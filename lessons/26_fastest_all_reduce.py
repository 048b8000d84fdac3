# %% [markdown]
# # 26. Which all-reduce is the fastest?
#
# *Read this lesson after lesson 6.* Seven algorithms give the same sum. Which one is the fastest
# depends on the size of the array, on the number of ranks, and on the machine. This can be
# calculated before anything is run.
#
# About 15 minutes. At the end you know why small arrays need few rounds and large arrays few bytes,
# how to predict the time of an algorithm, and what changes if some links are faster than others.
#
# You need: lesson 6. Run it with `python lessons/26_fastest_all_reduce.py`. All times here are
# simulated, except in the part for real ranks.

# %%
import matplotlib.pyplot as plt
import numpy as np

from minidist import LocalWorld, Machine, launch
from minidist.collectives import ALL_REDUCE, all_reduce, auto
from minidist.comm import Link, first_process, launched_size, print_once
from minidist.plots import save

SEVEN = ["central", "binomial", "recursive_doubling", "ring"]
SEVEN += ["segmented_ring", "halving_doubling", "double_tree"]

# %% [markdown]
# ## Three numbers of a machine
#
# Lesson 5 had two: a message of n bytes takes α + n·β seconds. α is the latency, and β the seconds
# for a byte, 1 / bandwidth. Adding needs a third: γ, the seconds to add one byte of two arrays.
# With p ranks
#
#     ring                  2(p − 1)(α + β n/p) + (p − 1) γ n/p
#     recursive doubling    lg p (α + β n + γ n)                      p a power of two
#
# **Question 1.** On 16 ranks, which of these two is faster for 40 bytes, and which for 40 MB? And
# for 40 KB, on the machine below?


# %%
machine = Machine("slow cables", latency=50e-6, bandwidth=117e6, reduce_bandwidth=1e9)
alpha, beta, gamma = machine.latency, 1 / machine.bandwidth, 1 / machine.reduce_bandwidth
p = 16
for n in (40, 40_000, 40_000_000):
    by_ring = 2 * (p - 1) * (alpha + beta * n / p) + (p - 1) * gamma * n / p
    by_doubling = np.log2(p) * (alpha + beta * n + gamma * n)
    print_once(
        f"{n:>12,} bytes: ring {by_ring * 1e3:9.3f} ms, "
        f"recursive doubling {by_doubling * 1e3:9.3f} ms"
    )

# %% [markdown]
# For few bytes only α counts: 30 rounds against 4. For many bytes only β and γ count: less than two
# arrays against four.
#
# ## Is the formula right?
#
# Each algorithm of the package has its formula, as `cost(length, itemsize, rank, ranks, machine)`:
# messages, bytes and seconds of one rank, for an array of `length` numbers of `itemsize` bytes. We
# compare it with the simulated clock, on which the messages are really sent.


# %%
def simulate(name, ranks, length, machine=machine):
    world = LocalWorld(machine)
    array = np.ones(length, np.float32)
    launch(lambda comm: all_reduce(comm, array.copy(), algorithm=name), ranks, world)
    return world.seconds


print_once(f"{'16 ranks, 40 KB':20} {'clock':>12} {'formula':>12}")
for name in SEVEN:
    clock = simulate(name, 16, 10_000)
    costs = [ALL_REDUCE[name].cost(10_000, 4, rank, 16, machine) for rank in range(16)]
    formula = max(cost.seconds for cost in costs)
    print_once(f"{name:20} {clock * 1e3:9.4f} ms {formula * 1e3:9.4f} ms")

# %% [markdown]
# They agree to the last digit. So the formulas can tell us the fastest algorithm, also for sizes
# and numbers of ranks that would take long to simulate.
#
# **Question 2.** An array of 4 MB, on 2 to 1,024 ranks: whose time grows in proportion to the
# ranks, and whose hardly grows?

# %%
if first_process():
    style = {"segmented_ring": "--"}  # it often lies on the ring's line
    figure, axes = plt.subplots(1, 2, figsize=(13, 5.2))
    lengths = np.unique((2.0 ** np.arange(1, 25)).astype(int))
    for name in SEVEN:
        times = [ALL_REDUCE[name].cost(int(n), 4, 0, 16, machine).seconds * 1e3 for n in lengths]
        axes[0].loglog(lengths * 4, times, style.get(name, "-"), label=name.replace("_", " "))
    axes[0].set_title("16 ranks: time by size", loc="left")
    axes[0].set_xlabel("bytes")
    counts = [2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
    for name in SEVEN:
        times = [ALL_REDUCE[name].cost(2**20, 4, 0, p, machine).seconds * 1e3 for p in counts]
        axes[1].loglog(counts, times, style.get(name, "-"), label=name.replace("_", " "))
    axes[1].set_xscale("log", base=2)
    axes[1].set_title("4 MB: time by number of ranks", loc="left")
    axes[1].set_xlabel("ranks")
    for panel in axes:
        panel.set_ylabel("ms")
        panel.spines[["top", "right"]].set_visible(False)
    axes[1].legend(frameon=False)
    figure.tight_layout()
    print(f"picture: {save(figure, 'out/lessons/26_fastest_all_reduce.png')}")

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
# Real machines have fast links inside a machine (a *node*) and slow links between nodes. The
# algorithm *hierarchical* first sums inside each node, so that only a small part is sent over the
# slow links.
#
# **Question 3.** 16 ranks on 4 nodes of 4, 1 MB: is it faster than a ring, which sends the fewest
# bytes?

# %%
slow = Link(latency=30e-6, bandwidth=5e9)  # between nodes of 4 ranks
two_levels = Machine("two levels", 3e-6, 100e9, reduce_bandwidth=500e9, node=4, network=slow)
for name in ("ring", "hierarchical"):
    seconds = simulate(name, 16, 250_000, two_levels)
    print_once(f"{name:13} {seconds * 1e6:8.1f} µs on 4 nodes of 4")

# %% [markdown]
# More than four times as fast: the ring waits for the slow links in each of its 30 rounds.
#
# ## On real ranks
#
# So far every rank was simulated. The next lines run on the ranks that there are: four simulated
# ones under plain `python`, and real processes that send real messages under
#
#     minidist run -n 2 lessons/26_fastest_all_reduce.py
#
# **Question 4.** For 40 bytes, which do you expect to be faster on them, a ring or recursive
# doubling? And for 4 MB?


# %%
def measure(comm, name, length):
    """Seconds of one all-reduce: the median of nine."""
    array, taken = np.ones(length, np.float32), []
    for _ in range(9):
        comm.barrier()
        start = comm.time()
        all_reduce(comm, array, algorithm=name)
        taken.append(comm.time() - start)
    return np.median(taken) * 1e6


kind = "real" if launched_size() else "simulated"
for name in ("central", "ring", "recursive_doubling"):
    found = launch(lambda comm, n=name: [measure(comm, n, length) for length in (10, 2**20)], 4)
    small, large = np.max(found, axis=0)
    print_once(
        f"{len(found)} {kind} ranks, {name:20} {small:8.1f} µs for 40 bytes, {large:8.1f} for 4 MB"
    )

# %% [markdown]
# On four simulated ranks recursive doubling takes a third of the ring's time for 40 bytes, and 1.6
# times its time for 4 MB. On real ranks that have a core each, expect a similar order. With more
# ranks than cores, a message may wait until its receiver gets a core, and that can take longer than
# all that the formula has in it. This is why `auto` measures there.
#
# ## Shared memory
#
# Ranks on one machine can also share memory. `shared_memory` copies through shared buffers, and
# sends only empty messages, to say that something is ready. With `cross_memory` the kernel copies
# from the memory of one process to that of another, where the system allows it. With *symmetric
# memory* the arrays themselves are shared: each rank adds one chunk of all arrays in place, and
# nothing is copied. On two cores, from 4 MB up, this has 2.5 to 3.6 times the bandwidth of the MPI
# library's all-reduce (MPICH 5.0.2 on an AMD EPYC; `docs/collectives.md` has the table). The three
# files are in `minidist/collectives/shared/`.
#
# ## What to take away
#
# 1. The time of an algorithm is a formula of α, β and γ, and it can be checked against a clock.
# 2. Small arrays need few rounds (α), large arrays few bytes (β).
# 3. No algorithm is always the fastest: it depends on size, ranks and machine. So `auto` calculates
#    or measures.
#
# **Try it:**
#
# 1. Set `latency=1e-6`, a fast network's. From which size on is a ring faster than recursive
#    doubling, on 16 ranks? And with the 50 µs of above?
# 2. Measure your own machine, and compare with the MPI library: `minidist bench collectives --ranks
#    2`. Up to which size is the library faster?
#
# <details><summary>Answers</summary>
#
# 1. From about 1.2 KB on; with 50 µs from about 61 KB on. The sizes differ by a factor of 50, as
#    the latencies do.
# 2. It depends on the machine. On the two cores of `docs/collectives.md` the library was faster up
#    to 4 KB, from 1 MB up the ring or shared memory.
#
# </details>
#
# Next: [lesson 7](07_data_parallel.py).
