# %% [markdown]
# # 10. The parameter server
#
# Data parallelism needs the gradients of all ranks. In a ring, equal ranks add them up. The
# parameter server, an older method, has two roles:
#
# - **workers** compute gradients, *push* them, and *pull* new parameters;
# - a **server** owns the parameters and the optimizer, and steps.
#
# About 35 minutes. At the end you know its bottleneck and how it is removed, what a worker may
# leave out of a push, and what is lost when a rank fails. That workers *need not wait for each
# other* is lesson 22.
#
# You need: lessons 7 and 9.

# %%
from functools import partial

import matplotlib.pyplot as plt
import numpy as np

from minidist import LocalWorld, Machine, launch
from minidist.comm import Crash, first_process, launched_size, print_once
from minidist.data import Batches, fashion_mnist
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import SGD
from minidist.parallel import (
    DataParallel,
    ParameterServer,
    ServerLost,
    StaleParameterServer,
)
from minidist.parallel.gradient_compression import Quantised, TopK
from minidist.plots import save

training, _ = fashion_mnist()
WIDTHS, STEPS = (784, 64, 10), 100

# %% [markdown]
# ## One port for all
#
# With W workers and n bytes of gradients, each worker sends n and receives n. The server receives
# Wn and sends Wn, through *one* port. We measure one step with more and more workers. Here
# computing takes no time (a very fast machine), so only the time of messages is left.
#
# **Question 1.** Twice the workers: what happens to the bytes of one server, of W/2 servers, and of
# each rank in a ring?


# %%
def wire(ranks, kind, **options):
    """Bytes that the busiest rank sends in a step, and the step's seconds in virtual time."""

    def run(comm):
        method = kind(mlp(WIDTHS), CrossEntropy(), SGD(0.1), comm, **options)
        batch = Batches(training, 128, 0)[0]
        comm.barrier()
        start = comm.time()
        method.step(batch)
        return comm.trace.sent.nbytes, comm.time() - start

    network = Machine(latency=20e-6, bandwidth=1e9, reduce_bandwidth=8e9, flops=1e15)
    results = launch(run, ranks, LocalWorld(network))
    return max(sent for sent, _ in results), max(seconds for _, seconds in results)


workers = [2, 4, 8, 16]
ways = {
    "1 server": lambda w: wire(w + 1, ParameterServer),
    "W/2 servers": lambda w: wire(w + w // 2, ParameterServer, servers=w // 2),
    "W servers, beside the workers": lambda w: wire(w, ParameterServer, colocated=True),
    "the same, waiting for nobody": lambda w: wire(w, StaleParameterServer, colocated=True),
    "ring all-reduce": lambda w: wire(w, DataParallel),
}
measured = {name: [way(w) for w in workers] for name, way in ways.items()}
print_once(f"{'KB that the busiest rank sends':32}" + "".join(f"  W = {w:<4}" for w in workers))
for name, results in measured.items():
    print_once(f"{name:32}" + "".join(f"{sent / 1e3:8,.0f} " for sent, _ in results))
print_once(f"{'milliseconds on the wire':32}")
for name, results in measured.items():
    print_once(f"{name:32}" + "".join(f"{1e3 * seconds:8.2f} " for _, seconds in results))

# %% [markdown]
# One server's bytes and time grow with W: twice the workers, twice the time. This is the
# bottleneck. The solution is *sharding*: cut the keys (the flat parameters) into S ranges, and give
# each range its own server. Each server then sends nW/S bytes.
#
# In the extreme case, every rank is a worker and a server. A rank sends nothing to itself, so each
# rank sends 2n(W − 1)/W bytes. Servers beside the workers and the ring have the same lines in the
# table, and the same formulas: a fully sharded synchronous server *is* a reduce-scatter and an
# all-gather.
#
# So servers are not needed for adding gradients. Why use them? The line between the two sends the
# same bytes, but its workers wait for nobody. That is another method, and
# [lesson 22](22_nobody_waits.py). Here are two other reasons.

# %%
if first_process():
    figure, panels = plt.subplots(1, 2, figsize=(12, 4.4), layout="constrained")
    styles = ["o-", "o-", "o-", "s:", "x--"]  # the last three lie on each other
    for name, style in zip(measured, styles, strict=True):
        sent, seconds = zip(*measured[name], strict=True)
        panels[0].loglog(workers, [n / 1e3 for n in sent], style, label=name)
        panels[1].loglog(workers, [1e3 * s for s in seconds], style, label=name)
    panels[0].set_title("KB that the busiest rank sends in a step", loc="left")
    panels[1].set_title("milliseconds on the wire, virtual", loc="left")
    panels[1].legend(frameon=False)
    panels[0].set_yticks([200, 400, 800, 1600, 3200], ["200", "400", "800", "1600", "3200"])
    panels[1].set_yticks([0.25, 0.5, 1, 2, 4, 8], ["1/4", "1/2", "1", "2", "4", "8"])
    for axes in panels:
        axes.set_xticks(workers, [str(w) for w in workers])
        axes.minorticks_off()
        axes.set_xlabel("workers")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    print(f"picture: {save(figure, 'out/lessons/10_parameter_server.png')}")

# %% [markdown]
# ## Compressed pushes
#
# Pushes can be compressed, as in lesson 9: each worker keeps the part that it has not sent and adds
# it to its next push. Pulls are parameters, and cannot be compressed in this way.
#
# **Question 2.** What is the most that this can save of a worker's sent bytes, and of its received
# ones?


# %%
CLUSTER = Machine(latency=20e-6, bandwidth=1e9, reduce_bandwidth=8e9, flops=1e9)


def compressed(comm, compressor):
    method = StaleParameterServer(
        mlp(WIDTHS), CrossEntropy(), SGD(0.1), comm, servers=2, compressor=compressor
    )
    batches = Batches(training, 128, 0)
    losses = method.train([batches[step] for step in range(STEPS)])
    return np.mean(losses[-25:]), comm.trace.sent.nbytes / STEPS


print_once(f"{'a push, 4 workers, 2 servers':34}{'KB a worker sends a step':>25}{'loss':>8}")
for name, compressor in (
    ("uncompressed", None),
    ("8 bits an element", Quantised),
    ("the largest 1 %", partial(TopK, 0.01)),
):
    results = launch(partial(compressed, compressor=compressor), 6, LocalWorld(CLUSTER))
    loss, sent = results[-1]  # the last rank is a worker
    print_once(f"{name:34}{sent / 1e3:25.1f}{loss:8.3f}")

# %% [markdown]
# ## When a rank fails
#
# **Question 3.** Which is worse, to lose a worker or a server?
#
# A ring stops if one of its ranks fails. Here the data of a worker is also on the server, so the
# other workers continue without it. A server has the only copy of its keys. If it fails, there is
# an error that says which keys are lost. For this case there are `method.state()` and
# `method.load(...)`.


# %%
def train_until_somebody_dies(comm, victim):
    method = StaleParameterServer(mlp(WIDTHS), CrossEntropy(), SGD(0.1), comm, servers=2)
    batches = Batches(training, 128, 0)
    losses = []
    for start in range(0, 40, 10):
        if comm.rank == victim and start == 20:
            raise Crash("power cut")
        losses += method.train([batches[step] for step in range(start, start + 10)])
    return losses


results = launch(lambda comm: train_until_somebody_dies(comm, victim=4), 6, LocalWorld())
print_once(f"worker 4 died; loss {results[0][0]:.2f} → {results[0][-1]:.2f} without it")
try:
    launch(lambda comm: train_until_somebody_dies(comm, victim=1), 6, LocalWorld())
except ServerLost as error:
    print_once(f"ServerLost: {error}")

# %% [markdown]
# ## On real ranks
#
# So far every rank was simulated. The next lines run on the ranks that there are: four simulated
# ones under plain `python`, and real processes that send real messages under
#
#     minidist run -n 2 lessons/10_parameter_server.py
#
# Every rank is a worker with a server beside it.
#
# **Question 4.** Is the loss the same on two ranks as on four, and as in a second run?


# %%
def on_these_ranks(comm):
    batches = [Batches(training, 128, 0)[step] for step in range(20)]
    exact = ParameterServer(mlp(WIDTHS), CrossEntropy(), SGD(0.1), comm, colocated=True)
    return [exact.step(batch) for batch in batches][-1]


found = launch(on_these_ranks, 4)
kind = "real" if launched_size() else "simulated"
print_once(f"{len(found)} {kind} ranks, all wait for all: loss {found[0]:.6f}")

# %% [markdown]
# The synchronous server gives serial training's numbers each time, up to the order in which
# summands are added.
#
# ## Should you choose it today?
#
# For a dense model on equal machines: no. Synchronous all-reduce sends the least, needs no extra
# ranks, discards no gradient, and gives the same result every time. Choose servers when
#
# - workers are **unequal, or join and leave** (cheap machines that may be taken away, phones): the
#   server stays, and no worker waits for a missing one;
# - the model is **sparse and huge**, such as the embeddings of a recommender: a worker uses few
#   keys in a batch, and pushes and pulls only those;
# - the optimizer's **state should be on other machines** than those that compute. ZeRO has the same
#   idea: its shards are colocated servers.
#
# ## Try it
#
# 1. What does the table say for 3 servers and 8 workers? Predict the KB first.
# 2. Give `train_until_somebody_dies` four servers and let the first one die. Which keys are lost?
#
# <details><summary>Answers</summary>
#
# 1. 543 KB, a third of what one server sends for 8 workers (1,629). A step is on the wire for
#    1.51 ms in place of 3.76.
# 2. A quarter of all, keys 0 to 12722 of 50890: the first 12,723 numbers of `1.weight`.
#
# </details>
