# %% [markdown]
# # 6. All-reduce, seven ways
#
# Every rank has an array. Afterwards every rank has the *sum* of all of them. This is an
# **all-reduce**. Data parallel training is built on it: there the arrays are gradients.
#
# There are many ways to do it, and they differ a lot. We write two of them, take five more from the
# package, draw them, and count what each rank sends.
#
# About 25 minutes. At the end you know a tree and a ring, and what each of the seven ways sends.
#
#     python lessons/06_all_reduce.py                  ranks in one process
#     mpirun -n 4 python lessons/06_all_reduce.py      4 real processes
#
# Under `mpirun`, `central`, `ring` and the table of all seven run on your ranks, as many as there
# are. The rest is simulated, and so are all times.
#
# You need: lesson 5.

# %%
import matplotlib.pyplot as plt
import numpy as np

from minidist import LocalWorld, Machine, launch
from minidist.collectives import ALL_REDUCE, all_reduce
from minidist.comm import Timeline, first_process, print_once
from minidist.comm.timeline import draw_timeline
from minidist.plots import save
from minidist.plots.messages import draw_tree, rounds_of

# %% [markdown]
# ## Central
#
# All ranks send to rank 0; it adds the arrays and sends the sum back.
#
# **Question 1.** With 4 ranks, how many messages does each rank send? Which one has the most to do,
# and what do the others do meanwhile?


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
    return array, comm.trace.sent.messages


results = launch(lambda comm: try_it(comm, central), ranks=4)
print_once(f"central: {results[-1][0]}, messages by rank: {[sent for _, sent in results]}")

# %% [markdown]
# Rank 0 sends three messages and receives three, and the others wait. With p ranks and n bytes,
# 2(p − 1) messages of n bytes go through *one* rank's link, one after another. Twice as many ranks
# take twice as long, while all other links are idle.
#
# ## A tree
#
# Let ranks add in pairs. At first every second rank sends its array to the rank before it, which
# adds. Then half of the ranks have something to send, then a quarter. Rank 0 has the sum at the end
# (a *reduce*), and the same messages in the opposite direction bring it to all (a *broadcast*).
# This is a **binomial tree**.
#
# **Question 2.** How many rounds does the reduce take with 8 ranks? And with 1,000?
#
# The package's `binomial` does it. The rounds below are read from the messages that it sends.


# %%
def messages_of(algorithm, ranks=8):
    world = LocalWorld(record=True)
    launch(lambda comm: algorithm(comm, np.ones(8)), ranks, world)
    return rounds_of(Timeline(world.traces).arrows())


star, tree = messages_of(central), messages_of(ALL_REDUCE["binomial"])
for number, messages in enumerate(tree, 1):
    print_once(f"round {number}:  " + "   ".join(f"{sender} → {to}" for sender, to in messages))

# %% [markdown]
# Three rounds with 8 ranks, and ten with 1,000: each round halves the number of arrays, so there
# are lg p of them (log₂ p, rounded up). The same in pictures, with the root at the top. A red
# number is the round of a message: up for the reduce, down for the broadcast.

# %%
if first_process():
    figure, axes = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
    draw_tree(axes[0], star[:7], True, "central, reduce: 7 rounds")
    draw_tree(axes[1], tree[:3], True, "binomial, reduce: 3 rounds")
    draw_tree(axes[2], tree[3:], False, "binomial, broadcast: 3 more")
    print(f"picture: {save(figure, 'out/lessons/06_all_reduce.png')}")

# %% [markdown]
# ## A ring
#
# In the tree every message is the whole array. A ring cuts the array into p *chunks*. In each round
# all ranks send one chunk to the right, at the same time, and add the chunk that comes from the
# left. Watch the sum of chunk 0 grow, with three ranks whose arrays are a, b and c:
#
#     the ranks have                 chunk 0     chunk 1     chunk 2
#       rank 0                         a0          a1          a2
#       rank 1                         b0          b1          b2
#       rank 2                         c0          c1          c2
#     round 1: rank r sends chunk r, and adds chunk r − 1 that comes from the left
#       rank 0                         a0          a1        a2+c2
#       rank 1                       b0+a0         b1          b2
#       rank 2                         c0        c1+b1         c2
#     round 2: rank r sends chunk r − 1, and adds chunk r − 2
#       rank 0                         a0      a1+c1+b1      a2+c2
#       rank 1                       b0+a0         b1      b2+a2+c2
#       rank 2                     c0+b0+a0      c1+b1         c2
#
# After p − 1 rounds each chunk is complete on one rank. This half is called a **reduce-scatter**.
# In p − 1 more rounds the complete chunks are sent around the ring: an **all-gather**.
#
# **Question 3.** The array has 8,000 bytes. How many does a rank send with 4 ranks? With 16? With
# 125?


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


def bytes_sent(comm):
    ring(comm, np.ones(1000))
    return comm.trace.sent.nbytes


print_once(f"ring:    {launch(lambda comm: try_it(comm, ring), ranks=4)[-1][0]}")
for ranks in (2, 4, 16, 125):
    print_once(f"{ranks:4} ranks: {launch(bytes_sent, ranks, LocalWorld())[0]:6,} bytes a rank")

# %% [markdown]
# 2(p − 1) chunks of n/p bytes are **2n(p − 1)/p**: less than 2n for *any number of ranks*, and no
# algorithm can send less. This is why rings are used for large models. But it takes 2(p − 1)
# rounds, and each round costs a latency α.
#
# ## Four more
#
# - **recursive doubling**: exchange *everything* with a partner 1 away, then 2, then 4: lg p
#   rounds, the fewest.
# - **halving and doubling**: exchange *halves*, quarters, eighths, and back: 2 lg p rounds, and
#   only the ring's bytes. (A power of two is best.)
# - **segmented ring**: the ring in pieces, so that one piece is added while the next is sent.
# - **double tree**: two trees, each for half of the array; a rank that passes messages on in one is
#   a leaf of the other.
#
# Each has its own file in `minidist/collectives/`, with a drawing and its formula.
#
# **Question 4.** Look at each algorithm's busiest rank. For which algorithm does it send the fewest
# messages, and for which the fewest bytes?

# %%
SEVEN = ["central", "binomial", "recursive_doubling", "ring"]
SEVEN += ["segmented_ring", "halving_doubling", "double_tree"]


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
# All give the same sum. In *central*, rank 0 sends three times as much as the others; in the ring
# all send the same. The busiest rank sends the fewest messages, two, with the binomial tree and
# recursive doubling. It sends the fewest bytes with the rings, and with halving and doubling, which
# needs fewer messages for them.
#
# ## See them
#
# The local world can draw a run: a row for each rank and an arrow for each message. A rank is pale
# while it communicates, and dark while it adds. The array has 2 MB, all pictures have the same
# scale, and α is 50 µs. **Question 5.** Which three are the fastest?

# %%
machine = Machine("slow cables", latency=50e-6, bandwidth=117e6, reduce_bandwidth=1e9)


def simulate(name, machine=machine, length=500_000):
    world = LocalWorld(machine, record=True)
    array = np.ones(length, np.float32)
    launch(lambda comm: all_reduce(comm, array.copy(), algorithm=name), ranks=4, world=world)
    return world


if first_process():
    worlds = {name: simulate(name) for name in SEVEN}
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
# Those whose busiest rank sends the fewest bytes: 1.5 times the array, on 4 ranks.
#
# Is this so at every size? [Lesson 26](26_fastest_all_reduce.py) predicts it.
#
# ## What to take away
#
# 1. An all-reduce can be central, a tree, a ring, or an exchange in pairs: the same sum, by other
#    messages.
# 2. A tree needs the fewest rounds of those with one root, lg p up and lg p down; but every message
#    is the whole array.
# 3. A ring sends less than 2n bytes a rank, on any number of ranks; but it needs 2(p − 1) rounds.
#
# ## Try it
#
# 1. In both `sendrecv` calls of `ring`, exchange `right` and `left`. Does it still work? Why?
# 2. In `ring`, forget the last round of the reduce-scatter (`range(comm.size - 2)`), and then of
#    the all-gather. Which chunks are wrong, on which ranks?
# 3. Give `machine` one slow link: `links={(2, 3): Link(50e-6, 10e6)}` (`from minidist.comm import
#    Link`). Which algorithm suffers most in the timelines, and which do not change?
#
# <details><summary>Answers</summary>
#
# 1. With 4 ranks it runs, and the sums are wrong: the chunk that comes from the right is not the
#    one to which it is added. With 16 ranks chunks differ in length, so there is an error. The
#    chunks must go round in the other direction too: + in place of - before `round`.
# 2. Without the last round of the reduce-scatter no chunk has all four arrays in it: all are wrong,
#    on all ranks. Without that of the all-gather each rank lacks one chunk, the last that it would
#    have received.
# 3. The ring: 302 ms instead of 27, since it sends nearly the whole array over each link, twice.
#    Halving and doubling takes 119 ms. Central and the double tree do not change: with 4 ranks,
#    they send nothing from rank 2 to rank 3.
#
# </details>
#
# **Marked exercises:** `minidist exercise start central`, `minidist exercise start ring`, `minidist
# exercise start halving_doubling`.
