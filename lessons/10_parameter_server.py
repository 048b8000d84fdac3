# %% [markdown]
# # 10. The parameter server
#
# Data parallelism needs everybody's gradient. A ring adds them up among equals. The parameter
# server, the method of the field's first decade, does it with two roles:
#
# - **workers** compute gradients, *push* them, and *pull* new parameters;
# - a **server** owns the parameters and the optimizer, and steps.
#
# We begin with what is wrong with it, repair that, and then look at the one thing that a server can
# do and a ring cannot: *not wait*.

# %%
from collections import Counter
from functools import partial

import matplotlib.pyplot as plt
import numpy as np

from minidist import LocalWorld, Machine, launch, no_grad
from minidist.comm import Crash, Pauses, first_process, print_once
from minidist.data import Batches, fashion_mnist
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import SGD
from minidist.parallel import (
    BackupWorkers,
    DataParallel,
    LookAhead,
    ParameterServer,
    ServerLost,
    StaleParameterServer,
)
from minidist.parallel.gradient_compression import Quantised, TopK
from minidist.plots import save

training, test = fashion_mnist()
WIDTHS = (784, 64, 10)

# %% [markdown]
# ## One port for all
#
# With W workers and n bytes of gradients, each worker sends n and receives n. The server receives
# Wn and sends Wn, through *one* port. We measure one step with more and more workers. Computing is
# made free here (a very fast machine), so that only the wire is left.


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
# One server's bytes and time grow with W: twice the workers, twice the time. That is the
# bottleneck. The repair is *sharding*: cut the keys (the flat parameters) into S ranges and give
# each range a server of its own. Each then has nW/S bytes to send.
#
# Go on until every worker has a server beside it. What it would send to itself stays where it is,
# and each rank sends 2n(W − 1)/W bytes: servers beside the workers and the ring have the same
# lines in the table, and the same formulas. A fully sharded synchronous server *is* a
# reduce-scatter and an all-gather.
#
# So nobody needs servers to add gradients up. What are they good for? The line between the two
# sends as much, but is another method:
#
# ## Waiting for the slowest
#
# Synchronous training (*bulk synchronous*, BSP) takes as long as its slowest worker. A server need
# not be so patient. It can apply each gradient when it comes:
#
# - **asynchronous**: push, pull, go on. Nobody waits, and gradients are *stale*: computed on
#   parameters that others have moved on since;
# - **stale synchronous (SSP)**: the same, but the fastest worker may be at most s clocks ahead of
#   the slowest;
# - **backup workers**: synchronous, but the last b gradients of each clock are thrown away.
#
# (A push carries its clock, 16 bytes with the loss. So a server knows how far each worker is, and
# recognises a push that comes twice.)
#
# Here is a cluster of four workers with two kinds of trouble: one worker that is always 4 times as
# slow, and workers that are equal but pause at random, as they do on machines shared with others.


# %%
SPEED = {"latency": 20e-6, "bandwidth": 1e9, "reduce_bandwidth": 8e9, "flops": 1e9}
machines = {  # a shard takes 10 ms to compute; a pause comes every fourth time, and takes 30 ms
    "one worker 4 times as slow": Machine(**SPEED, slowdown={4: 4.0}),
    "random pauses": Machine(**SPEED, pauses=Pauses(every=0.04, length=0.03), seed=1),
}
STEPS, EVERY = 100, 8


class Watched:
    """Keeps the server's parameters, and the time, after every few updates."""

    def update_keys(self):
        super().update_keys()
        self.count = getattr(self, "count", 0) + 1
        each = EVERY // 4 if isinstance(self, (ParameterServer, BackupWorkers)) else EVERY
        if self.count % each == 0:
            self.seen.append((self.comm.time(), self.count, self.data[self.owned].copy()))


def watch(kind, machine, **options):
    """Train freely; what the server saw: (time, updates, parameters), and each update."""

    def run(comm):
        watched = type("Watched" + kind.__name__, (Watched, kind), {})
        method = watched(mlp(WIDTHS), CrossEntropy(), SGD(0.1), comm, **options)
        method.seen = []
        batches = Batches(training, 128, 0)
        parts = [batches[step] for step in range(STEPS)]
        if kind is ParameterServer:
            for part in parts:
                method.step(part)
        else:
            method.train(parts)
        return method.seen, getattr(method, "updates", []), getattr(method, "dropped", 0)

    return launch(run, 5, LocalWorld(machine))[0]


judge = mlp(WIDTHS).init(0)
sample = test.batch(np.arange(1000))


def loss_of(parameters):
    """The loss on 1,000 images that nobody has trained on."""
    judge.flat.data[...] = parameters
    with no_grad():
        return CrossEntropy()(judge(sample.inputs), sample.targets, sample.count).item()


rules = {
    "BSP": (ParameterServer, {}),
    "BSP, 1 backup": (BackupWorkers, {"backups": 1}),
    "SSP, s = 3": (StaleParameterServer, {"staleness": 3}),
    "asynchronous": (StaleParameterServer, {}),
}
TARGET = 0.6
curves, staleness = {}, {}
for trouble, machine in machines.items():
    print_once(f"\n{trouble}: seconds until the test loss is {TARGET}")
    for rule, (kind, options) in rules.items():
        seen, updates, dropped = watch(kind, machine, **options)
        curve = [(time, count, loss_of(values)) for time, count, values in seen]
        curves[trouble, rule] = curve
        staleness[trouble, rule] = Counter(update.staleness for update in updates)
        reached = next(((t, n) for t, n, loss in curve if loss <= TARGET), (np.nan, 0))
        text = f"{rule:14} {reached[0]:6.2f} s, {reached[1]:4} updates"
        if updates:
            mean = np.mean([update.staleness for update in updates])
            text += (
                f"; staleness {mean:.1f} on average, {max(u.staleness for u in updates)} at most"
            )
        if dropped:
            text += f"; {dropped} gradients dropped"
        print_once(text)

# %%
COLOURS = dict(zip(rules, ["#2f6690", "#8d6a9f", "#4c9f70", "#c8553d"], strict=True))
GRADIENTS = {"BSP": 4, "BSP, 1 backup": 3}  # in an update; else 1
if first_process():
    figure, axes = plt.subplots(2, 3, figsize=(13, 7))
    for row, trouble in zip(axes, machines, strict=True):
        for rule in rules:
            times, counts, losses = zip(*curves[trouble, rule], strict=True)
            gradients = [count * GRADIENTS.get(rule, 1) for count in counts]
            row[0].plot(times, losses, color=COLOURS[rule], label=rule)
            row[1].plot(gradients, losses, color=COLOURS[rule])
        for axis in row[:2]:
            axis.axhline(TARGET, color="black", linewidth=0.8, linestyle=":")
            axis.set_ylim(0.45, 2.0)
            axis.set_ylabel("test loss (nats)")
        row[0].set(title=f"{trouble}: against time", xlabel="virtual seconds")
        row[0].set_xlim(0, 2.5)
        row[1].set(title="against updates", xlabel="gradients applied")
        for rule, shift in (("SSP, s = 3", -0.2), ("asynchronous", 0.2)):
            found = staleness[trouble, rule]
            last = 9
            shares = [found[tau] for tau in range(last)]
            shares.append(sum(found.values()) - sum(shares))
            percent = 100 * np.array(shares) / sum(found.values())
            row[2].bar(np.arange(last + 1) + shift, percent, 0.4, color=COLOURS[rule], label=rule)
        row[2].set_xticks(range(last + 1), [*map(str, range(last)), f"≥ {last}"])
        row[2].set(title="staleness of what was applied", ylabel="percent of gradients")
        row[2].set_xlabel("updates between pull and push")
        row[2].legend(frameon=False)
    axes[0, 0].legend(frameon=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle("Who waits, and what not waiting costs: 4 workers, 1 server", fontsize=14)
    figure.tight_layout()
    print(f"picture: {save(figure, 'out/lessons/10_parameter_server.png')}")

# %% [markdown]
# Left to right: against *time*, against the gradients that *updates* were made of, and how old
# these were.
#
# - **Against updates** all four learn nearly alike: staleness of two or three updates costs little
#   here. Nothing is gained by not waiting, per gradient.
# - **Against time** they differ, since they wait differently. Virtual seconds to a test loss of
#   0.6, as printed above:
#
#   | | BSP | SSP, s = 3 | asynchronous | BSP, 1 backup |
#   |---|---|---|---|---|
#   | one worker 4 times as slow | 1.58 | 1.45 | 0.45 | 0.47 |
#   | random pauses | 1.42 | 0.96 | 0.70 | 0.83 |
#
#   BSP pays the slowest worker's time at every step. Asynchronous workers pay nobody's but their
#   own. (Where the red line in the upper left picture bends, the three fast workers have finished
#   their batches, and one goes on alone.)
# - **SSP helps against pauses, and hardly against a worker that is always slow.** A head start of
#   s clocks absorbs a pause now and then: somebody else pauses next time. But if one worker is
#   *always* 4 times as slow, the others use their head start up once, and then wait for it at
#   every clock, as under BSP. The paper that introduced SSP (Ho et al. 2013) has the first kind of
#   trouble in mind. Its order holds in both: BSP slowest, SSP between, asynchronous fastest per
#   second, as long as staleness does no harm.
# - **A backup worker** is about as fast as asynchronous training, with no staleness at all. But
#   gradients are computed in vain, and the data of a worker that is always slow is never learnt
#   from.
#
# ## What staleness costs
#
# A stale gradient is a gradient that arrives late, and so is a gradient that momentum remembers.
# The two add up: with momentum 0.9 the same asynchronous workers do much worse. There are two
# repairs. *Weigh less*: divide a gradient by its staleness. *Look ahead*: with momentum the next
# updates will be much like the last, so the server can answer with the parameters that it expects
# to have by the time when the gradient comes (`look_ahead.py` has the arithmetic).


# %%
def loss_after(kind, optimizer, **options):
    def run(comm):
        method = kind(mlp(WIDTHS), CrossEntropy(), optimizer(), comm, **options)
        batches = Batches(training, 128, 0)
        for start in range(0, STEPS, 25):
            parts = [batches[step] for step in range(start, start + 25)]
            if kind is ParameterServer:
                losses = [method.step(part) for part in parts]
            else:
                losses = method.train(parts)
        return np.mean(losses)

    return launch(run, 5, LocalWorld(Machine(**SPEED)))[0]


print_once(f"{'mean training loss of the last 25 steps':42}{'SGD(0.1)':>10}{'+ momentum 0.9':>16}")
for name, kind, options in (
    ("BSP", ParameterServer, {}),
    ("asynchronous", StaleParameterServer, {}),
    ("asynchronous, divided by the staleness", StaleParameterServer, {"staleness_aware": True}),
    ("asynchronous, looking ahead as well", LookAhead, {"staleness_aware": True}),
):
    plain = loss_after(kind, lambda: SGD(0.1), **options)
    heavy = loss_after(kind, lambda: SGD(0.05, momentum=0.9), **options)
    print_once(f"{name:42}{plain:10.3f}{heavy:16.3f}")

# %% [markdown]
# With momentum the two together come within 10 % of BSP. Without it there is nothing to look ahead
# to, and plain asynchronous training is best. `minidist compare` trains with momentum, so its `ssp`
# and `async` rows do both.
#
# ## Say it shorter
#
# Pushes can be compressed, as in lesson 9: each worker keeps what it has not sent and adds it to
# its next push. Pulls are parameters, and cannot.


# %%
def compressed(comm, compressor):
    method = StaleParameterServer(
        mlp(WIDTHS), CrossEntropy(), SGD(0.1), comm, servers=2, compressor=compressor
    )
    batches = Batches(training, 128, 0)
    losses = method.train([batches[step] for step in range(STEPS)])
    return np.mean(losses[-25:]), comm.trace.sent.nbytes / STEPS


print_once(f"{'a push, 4 workers, 2 servers':34}{'KB a worker sends a step':>25}{'loss':>8}")
for name, compressor in (
    ("as it is", None),
    ("8 bits an element", Quantised),
    ("the largest 1 %", partial(TopK, 0.01)),
):
    results = launch(partial(compressed, compressor=compressor), 6, LocalWorld(Machine(**SPEED)))
    loss, sent = results[-1]  # the last rank is a worker
    print_once(f"{name:34}{sent / 1e3:25.1f}{loss:8.3f}")

# %% [markdown]
# ## What dies, and what is lost
#
# A ring stops when any of its ranks dies. Here a worker holds nothing that is not on the server as
# well, so the others go on without it. A server holds the only copy of its keys: that is an error,
# and it says which keys are gone. `method.state()` and `method.load(...)` are for that day.


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
# ## Should you choose it today?
#
# For a dense model on equal machines: no. Synchronous all-reduce sends the least, needs no ranks
# apart, wastes no gradient, and gives the same result every time. Choose servers when
#
# - workers are **unequal or come and go** (cheap machines that may be taken away, phones): the
#   server is the fixed point, and nobody waits for the absent;
# - the model is **sparse and huge**, such as the embeddings of a recommender: a worker touches few
#   keys in a batch, and pushes and pulls only those;
# - the optimizer's **state should live elsewhere** than on the machines that compute. ZeRO took
#   over this idea: its shards are colocated servers without the name.
#
# ## Try it
#
# 1. Predict first: with s = 0, how long does SSP need under "one worker 4 times as slow"? Why is
#    it not exactly BSP?
# 2. Make the network 20 times slower. Which rule suffers most, and what do two servers change?
# 3. In `StaleParameterServer.may_go`, write `<` instead of `<=`. Which s still works?
