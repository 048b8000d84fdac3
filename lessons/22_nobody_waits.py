# %% [markdown]
# # 22. Nobody waits
#
# A ring all-reduce takes as long as its slowest rank, in each step. A parameter server (lesson 10)
# can do what a ring cannot: its workers need not wait for each other. What is gained, and what does
# it cost?
#
# About 45 minutes. At the end you know four rules of waiting, when each is the fastest, and what a
# gradient does that comes late.
#
# You need: lesson 10. All times are simulated, except in the part for real ranks.

# %%
from collections import Counter

import matplotlib.pyplot as plt
import numpy as np

from minidist import LocalWorld, Machine, launch, no_grad
from minidist.colours import SERIES
from minidist.comm import Pauses, first_process, launched_size, print_once
from minidist.data import Batches, fashion_mnist
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import SGD
from minidist.parallel import BackupWorkers, LookAhead, ParameterServer, StaleParameterServer
from minidist.plots import save

training, test = fashion_mnist()
WIDTHS = (784, 64, 10)

# %% [markdown]
# ## Waiting for the slowest
#
# Synchronous training (*bulk synchronous*, BSP) takes as long as its slowest worker. But a server
# can also apply each gradient as soon as it arrives:
#
# - **asynchronous**: push, pull, continue. No worker waits, and gradients are *stale*: computed on
#   parameters that other workers have updated since;
# - **stale synchronous (SSP)**: the same, but the fastest worker may be at most s clocks ahead of
#   the slowest;
# - **backup workers**: synchronous, but the last b gradients of each clock are discarded.
#
# A worker's *clock* is the number of its step.
#
# Here are two problems on a cluster of four workers: one worker is always 4 times as slow; or
# workers are equal but pause at random, as on machines that other programs share.
#
# **Question 1.** Which rule is the fastest for each of them, and which gains nothing over BSP?


# %%
SPEED = {"latency": 20e-6, "bandwidth": 1e9, "reduce_bandwidth": 8e9, "flops": 1e9}
machines = {  # a shard takes 10 ms to compute; a pause comes every fourth time, and takes 30 ms
    "one worker 4 times as slow": Machine(**SPEED, slowdown={4: 4.0}),
    "random pauses": Machine(**SPEED, pauses=Pauses(every=0.04, length=0.03), seed=1),
}
STEPS, EVERY = 100, 8


class Watched:
    """Stores the server's parameters, and the time, after every few updates."""

    def update_keys(self):
        super().update_keys()
        self.count = getattr(self, "count", 0) + 1
        each = EVERY // 4 if isinstance(self, (ParameterServer, BackupWorkers)) else EVERY
        if self.count % each == 0:
            self.seen.append((self.comm.time(), self.count, self.data[self.owned].copy()))


def watch(kind, machine, **options):
    """Train; returns the server's (time, updates, parameters), and each update."""

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
    """The loss on 1,000 images that were not used in training."""
    judge.flat.data[...] = parameters
    with no_grad():
        return CrossEntropy()(judge(sample.inputs), sample.targets).item()


rules = {
    "BSP": (ParameterServer, {}),
    "BSP, 1 backup": (BackupWorkers, {"backups": 1}),
    "SSP, s = 3": (StaleParameterServer, {"staleness": 3}),
    "asynchronous": (StaleParameterServer, {}),
}
IN_AN_UPDATE = {"BSP": 4, "BSP, 1 backup": 3}  # gradients; else 1
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
        gradients = reached[1] * IN_AN_UPDATE.get(rule, 1)
        text = f"{rule:14} {reached[0]:6.2f} s, {gradients:4} gradients applied"
        if updates:
            late = [update.staleness for update in updates]
            text += f"; staleness {np.mean(late):.1f} on average, {max(late)} at most"
        if dropped:
            text += f"; {dropped} gradients dropped"
        print_once(text)

# %%
COLOURS = dict(zip(rules, SERIES[1:4] + SERIES[:1], strict=True))
if first_process():
    figure, axes = plt.subplots(2, 2, figsize=(11, 7))
    for row, trouble in zip(axes, machines, strict=True):
        for rule in rules:
            times, _, losses = zip(*curves[trouble, rule], strict=True)
            row[0].plot(times, losses, color=COLOURS[rule], label=rule)
        row[0].axhline(TARGET, color="black", linewidth=0.8, linestyle=":")
        row[0].set(title=f"{trouble}: loss against time", xlabel="virtual seconds")
        row[0].set(xlim=(0, 2.5), ylim=(0.45, 2.0), ylabel="test loss (nats)")
        for rule, shift in (("SSP, s = 3", -0.2), ("asynchronous", 0.2)):
            found, last = staleness[trouble, rule], 9
            shares = [found[tau] for tau in range(last)]
            shares.append(found.total() - sum(shares))
            percent = 100 * np.array(shares) / found.total()
            row[1].bar(np.arange(last + 1) + shift, percent, 0.4, color=COLOURS[rule], label=rule)
        row[1].set_xticks(range(last + 1), [*map(str, range(last)), f"≥ {last}"])
        row[1].set(title="staleness of what was applied", ylabel="percent of gradients")
        row[1].set_xlabel("updates between pull and push")
        row[1].legend(frameon=False)
    axes[0, 0].legend(frameon=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle("Waiting or staleness: 4 workers, 1 server", fontsize=14)
    figure.tight_layout()
    print(f"picture: {save(figure, 'out/lessons/22_nobody_waits.png')}")

# %% [markdown]
# - **By gradients** all four learn nearly the same: a staleness of two or three updates costs
#   little here. Not waiting gains nothing per gradient.
# - **By time** they differ, because they wait differently. With BSP every step takes the slowest
#   worker's time. An asynchronous worker needs only its own. (At the bend of its line in the
#   upper picture, the three fast workers have finished their batches, and one continues alone.)
# - **SSP helps against pauses, and hardly against a worker that is always slow.** A lead of s
#   clocks absorbs a pause now and then, because the next pause is that of another worker. But if
#   one worker is *always* 4 times as slow, the others use up their lead once, and then wait for it
#   at every clock, as with BSP. The paper that introduced SSP (Ho et al. 2013) is about pauses.
# - **A backup worker** is about as fast as asynchronous training, with no staleness at all. But
#   some gradients are computed and then discarded, and the data of a worker that is always slow is
#   never used.
#
# ## What staleness costs
#
# A stale gradient is applied late, and momentum also applies past gradients. The two effects add
# up: with momentum 0.9 the same asynchronous workers are much worse. There are two remedies.
# *Smaller weight*: divide a gradient by its staleness. *Look ahead*: with momentum the next updates
# will be similar to the last. So the server sends the parameters that it expects to have when the
# gradient arrives (see `look_ahead.py`).
#
# **Question 2.** Which of the two remedies helps without momentum?


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
# With momentum the two together are within 10 % of BSP. Without momentum, looking ahead changes
# nothing for the better, and plain asynchronous training is best. `minidist compare` trains with
# momentum, so its `ssp` and `async` rows do both.
#
# ## On real ranks
#
# So far every rank was simulated. The next lines run on the ranks that there are: four simulated
# ones under plain `python`, and real processes that send real messages under
#
#     minidist run -n 2 lessons/22_nobody_waits.py
#
# Every rank is a worker with a server beside it. Now nobody simulates who comes first: your
# operating system decides.
#
# **Question 3.** Run it twice. Which of the two lines is the same again?


# %%
def on_these_ranks(comm):
    batches = [Batches(training, 128, 0)[step] for step in range(20)]
    exact = ParameterServer(mlp(WIDTHS), CrossEntropy(), SGD(0.1), comm, colocated=True)
    waits = [exact.step(batch) for batch in batches][-1]
    stale = StaleParameterServer(mlp(WIDTHS), CrossEntropy(), SGD(0.1), comm, colocated=True)
    free = stale.train(batches)[-1]
    return waits, free, Counter(update.staleness for update in stale.updates)


found = launch(on_these_ranks, 4)
kind = "real" if launched_size() else "simulated"
print_once(f"{len(found)} {kind} ranks, all wait for all: loss {found[0][0]:.6f}")
late = sum((staleness for *_, staleness in found), Counter())
shares = ", ".join(
    f"{n / late.total():.0%} are {tau} updates old" for tau, n in sorted(late.items())
)
print_once(
    f"{len(found)} {kind} ranks, nobody waits: loss {found[0][1]:.6f}; of the gradients {shares}"
)

# %% [markdown]
# The synchronous server gives the same number each time. The other one depends on who comes first,
# so a bug in it may show in one run of a hundred: this is why it was simulated above.
#
# ## Try it
#
# 1. Predict first: with s = 0, how long does SSP need under "one worker 4 times as slow"? Why is
#    it not exactly BSP?
# 2. Make the network 20 times slower. Which rule suffers most, and what do two servers change?
# 3. In `StaleParameterServer.may_go`, write `<` instead of `<=`. Which s still works?
#
# <details><summary>Answers</summary>
#
# 1. As long as BSP, 1.58 s: nobody may be ahead. But each gradient is applied when it arrives, in a
#    step of its own. With SGD four such steps are one step with their mean; with momentum they are
#    not.
# 2. The asynchronous one: 2.17 s in place of 0.45, and BSP 2.80 in place of 1.58. The server's port
#    is now busy all the time, and not waiting for each other gains little. Two servers have two
#    ports: 40 asynchronous steps of equal workers take 0.85 s in place of 1.50.
# 3. All but s = 0, where no worker may ever begin (a deadlock). Each other s does what s - 1 did.
#
# </details>
#
# **Marked exercise:** `minidist exercise start stale_server`.
