# %% [markdown]
# # 5. Messages
#
# Ranks share no memory. If rank 1 needs data of rank 0, rank 0 must *send* it and rank 1 must
# *receive* it. Everything in this course is built from these two calls.
#
# About 25 minutes. At the end you know how ranks send and receive, why a wrong order of calls stops
# them all for ever, three ways out, and how long a message takes.
#
#     python lessons/05_messages.py                  4 ranks in one process
#     mpirun -n 4 python lessons/05_messages.py      4 real processes
#
# Under `mpirun` the messages are real, on as many ranks as there are. Only the deadlock, the times
# and the rank that dies are simulated.
#
# You need: lesson 0.

# %%
import matplotlib.pyplot as plt
import numpy as np

from minidist import LocalWorld, Machine, launch
from minidist.comm import Deadlock, Timeline, first_process, launched_size, print_once
from minidist.comm.comm import ANY
from minidist.comm.timeline import draw_timeline
from minidist.plots import save

# %% [markdown]
# ## Send and receive
#
# A program for many ranks is *one* function. Every rank runs it with its own `comm`; `comm.rank` is
# the number of the rank. Messages are arrays. The receiver passes the array to receive into, so it
# must know the shape and the dtype in advance.
#
# A message needs two ranks. So if the lesson was started on one process (`mpirun -n 1`), it
# simulates four.


# %%
def world():
    return LocalWorld() if launched_size() == 1 else None  # None: the ranks that there are


def hello(comm):
    if comm.rank == 0:
        comm.send(np.array([3.0, 1.0, 4.0]), to=1)
        return "sent"
    if comm.rank == 1:
        buffer = np.empty(3)
        comm.recv(buffer, source=0)
        return f"received {buffer}"
    return "did nothing"


for rank, result in enumerate(launch(hello, ranks=4, world=world())):
    print_once(f"rank {rank} {result}")

# %% [markdown]
# `launch` ran the function on four ranks and gave us the list of their results. Under `python` the
# ranks are functions in one process that run in turn; under `mpirun` each rank is a process. The
# program is the same.
#
# ## A ring
#
# Each rank sends its number to the right and receives one from the left: a ring. The obvious
# program is: first send, then receive. `send` returns when the message has been received.
#
# **Question 1.** All four ranks call `send` first. What happens?


# %%
def send_first(comm):
    mine, other = np.array([comm.rank]), np.empty(1, int)
    comm.send(mine, to=(comm.rank + 1) % comm.size)
    comm.recv(other, source=(comm.rank - 1) % comm.size)
    return other[0]


try:
    launch(send_first, ranks=4, world=LocalWorld())
except Deadlock as deadlock:
    # The rest of each line is the file and the line of your program where the rank waits.
    for line in str(deadlock).splitlines():
        print_once(line.split(", at ")[0])

# %% [markdown]
# **Deadlock.** Rank 0 waits until rank 1 receives; rank 1 has not reached its `recv`, because it
# waits until rank 2 receives; and so on around the ring. All ranks wait, and no rank can continue.
# Such a state is called a deadlock. (A receive is *posted* when its rank has called it.)
#
# With an MPI library this program may work: the library copies *small* messages into a buffer, so
# that `send` returns at once. If the arrays later grow to more than a few kilobytes, the same
# program hangs without a message. So the local world never buffers: a wrong program fails at every
# size.
#
# ### Solution 1: order
#
# Even ranks send first, odd ranks receive first. So every send has a matching receive. (`comm.step`
# gives a part of the program a name, for the picture below.)


# %%
def by_turns(comm):
    mine, other = np.array([comm.rank]), np.empty(1, int)
    right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    if comm.rank % 2 == 0:
        with comm.step("even sends"):
            comm.send(mine, right)
        with comm.step("odd sends"):
            comm.recv(other, left)
    else:
        with comm.step("even sends"):
            comm.recv(other, left)
        with comm.step("odd sends"):
            comm.send(mine, right)
    return int(other[0])


print_once("by turns: ", launch(by_turns, ranks=4, world=world()))

# %% [markdown]
# ### Solution 2: both at once
#
# `sendrecv` starts the receive and the send together and waits for both. A network cable carries
# both directions at the same time, so this is not only safe but twice as fast. Almost every
# algorithm in this course uses `sendrecv`.


# %%
def at_once(comm):
    mine, other = np.array([comm.rank]), np.empty(1, int)
    with comm.step("sendrecv"):
        comm.sendrecv(mine, (comm.rank + 1) % comm.size, other, (comm.rank - 1) % comm.size)
    return int(other[0])


print_once("at once:  ", launch(at_once, ranks=4, world=world()))

# %% [markdown]
# ### Solution 3: start now, wait later
#
# `isend` and `irecv` (i for *immediate*) start a message and return at once, with a *request*.
# Before `request.wait()` has returned, do not write an array that is being sent, and do not read an
# array that is being received. Meanwhile the rank can compute.


# %%
def start_and_wait(comm):
    mine, other = np.array([comm.rank]), np.empty(1, int)
    receiving = comm.irecv(other, (comm.rank - 1) % comm.size)
    sending = comm.isend(mine, (comm.rank + 1) % comm.size)
    # ... a good place to compute something ...
    sending.wait()
    receiving.wait()
    return int(other[0])


print_once("requests: ", launch(start_and_wait, ranks=4, world=world()))

# %% [markdown]
# ## Which message is it?
#
# Between two ranks messages do not overtake each other: the first receive gets the first message. A
# *tag* distinguishes messages with different purposes: a receive takes the first message with *its*
# tag. With `ANY` as source it takes the first message of any rank, and `recv` returns the sender.


# %%
def whoever_comes(comm):
    if comm.rank > 0:
        comm.send(np.array([comm.rank**2]), to=0, tag=7)
        return None
    square, seen = np.empty(1, int), {}
    for _ in range(comm.size - 1):
        source = comm.recv(square, ANY, tag=7)
        seen[source] = int(square[0])
    return dict(sorted(seen.items()))  # the order of arrival may differ from run to run


print_once("squares:", launch(whoever_comes, ranks=4, world=world())[0])

# %% [markdown]
# ## The time of a message
#
# A message of n bytes takes about **α + n·β** seconds: α is the *latency*, the time of an empty
# message, and 1/β is the *bandwidth*. The local world runs a clock by this rule, for a machine that
# you describe. Here is a cluster with slow cables: α is 50 µs.
#
# **Question 2.** How long does the ring of 8-byte messages take with the first solution, by turns?
# And with the second, at once?

# %%
cluster = Machine("cluster", latency=50e-6, bandwidth=117e6)
times = {}
for name, program in (("by turns", by_turns), ("at once", at_once)):
    clocked = LocalWorld(cluster, record=True)
    launch(program, ranks=4, world=clocked)
    times[name] = clocked
    print_once(f"{name}: {clocked.seconds * 1e6:.1f} µs for 8 bytes")

# %% [markdown]
# By turns took two α: one for the even ranks' messages, and one for the odd ranks'. The picture
# shows it. Each row is a rank, each arrow a message.
#
# **Question 3.** Below is also the time of one message, from 1 byte to 16 MB. How much longer do
# 1,000 bytes take than 1 byte? And 2 MB than 1 MB?

# %%
if first_process():
    figure, axes = plt.subplots(3, 1, figsize=(11, 9), height_ratios=[2, 2, 3])
    longest = max(clocked.seconds for clocked in times.values()) * 1e6
    for panel, (name, clocked) in zip(axes, times.items(), strict=False):
        timeline = Timeline(clocked.traces)
        draw_timeline(panel, timeline.events, name, timeline.arrows(), steps=True, legend="right")
        panel.set_xlim(0, longest)
    sizes = 2.0 ** np.arange(0, 25)
    for label, machine in (
        ("slow cables: 50 µs, 117 MB/s", cluster),
        ("one laptop: 2 µs, 4 GB/s", Machine()),
    ):
        line = axes[2].loglog(sizes, [machine.message(s) * 1e6 for s in sizes], label=label)
        half = machine.latency * machine.bandwidth  # here latency and bytes cost the same
        axes[2].plot([half], [2 * machine.latency * 1e6], "o", color=line[0].get_color())
    axes[2].set_title("time of one message; dots: half of it is latency", loc="left")
    axes[2].set_xlabel("bytes")
    axes[2].set_ylabel("µs")
    axes[2].legend(frameon=False)
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    print(f"picture: {save(figure, 'out/lessons/05_messages.png')}")

# %% [markdown]
# Left of the dot *latency* dominates: 1,000 bytes take hardly longer than one. So do not send a
# thousand small messages if one large message is enough. Right of the dot *bandwidth* dominates:
# twice the bytes take twice as long, and two halves as long as the whole.
#
# ## When a rank dies
#
# At a *barrier* every rank waits until all have come. **Question 4.** One rank fails before it
# comes. With plain MPI, what do the others do?


# %%
def one_fails(comm):
    if comm.rank == 2:
        raise KeyError("the third rank lost something")
    comm.barrier()


try:
    launch(one_fails, ranks=4, world=LocalWorld())
except KeyError as error:
    print_once(f"{type(error).__name__} with {error}, {error.__notes__[0]}")

# %% [markdown]
# With plain MPI they wait for ever. `launch` ends all ranks, and shows the traceback of the one
# that failed.
#
# ## What to take away
#
# 1. A message needs a send and a receive, and both sides must come to it: order matters.
# 2. A message takes α + n·β. Short messages cost their latency, long ones their bytes.
# 3. `sendrecv` is safe, and uses both directions of a cable.
#
# ## Try it
#
# 1. In `by_turns`, use 5 ranks. Ranks 4 and 0 are both even and neighbours. Does it deadlock? How
#    long does it take now, and why? (`launch(by_turns, ranks=5, world=LocalWorld(cluster))`)
# 2. Send an array of 4 elements to a rank that receives 3. What does the error say?
# 3. Draw any program: `minidist trace lessons/05_messages.py --ranks 6`.
#
# <details><summary>Answers</summary>
#
# 1. It does not: rank 4 waits until rank 0 has sent to rank 1 and then receives. It takes the time
#    of three messages in place of two, since one pair of neighbours has to wait for another.
# 2. "rank 0 sends float64[4] and rank 1 receives float64[3] (tag 0): both sides of a message must
#    agree on dtype and length".
#
# </details>
