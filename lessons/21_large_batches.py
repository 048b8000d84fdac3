# %% [markdown]
# # 21. Large batches
#
# More ranks need a larger batch, or each has too little work. But with 16 times the batch there are
# only 1/16 of the steps in an epoch. Can a model learn as much in so few steps?
#
# About 20 minutes. At the end you know three things that help, and what each does to the accuracy
# of a small model.
#
# You need: lesson 7. Run it with `python lessons/21_large_batches.py`. It trains on one rank, since
# data parallel training gives the same numbers, until the part for real ranks.

# %%
import matplotlib.pyplot as plt
import numpy as np

from minidist import LocalWorld, launch
from minidist.comm import first_process, launched_size, print_once
from minidist.data import Batches, fashion_mnist
from minidist.inspect import accuracy
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import LAMB, LARS, SGD
from minidist.optim.schedules import linear, linear_scaling, warm_up
from minidist.parallel import DataParallel, Serial
from minidist.plots import save

training, test = fashion_mnist()

# %% [markdown]
# ## Fewer steps
#
# An *epoch* is one pass over all samples. Each run here has six, with a batch of 64 or of 1024.
#
# **Question 1.** With the same learning rate, which of the two reaches the higher accuracy?

# %%
EPOCHS, SMALL, LARGE, RATE = 6, 64, 1024, 0.02
curves = {}


def train(comm, batch, optimizer):
    widths = (784, 128, 64, 10)
    method = Serial(mlp(widths), CrossEntropy(), optimizer, comm)
    batches = Batches(training, batch, seed=0)
    steps = EPOCHS * batches.steps_per_epoch
    losses = [method.step(batches[step]) for step in range(steps)]
    return losses, accuracy(mlp(widths).init().load(method.parameters()), test)


def report(name, batch, optimizer):
    run = launch(lambda comm: train(comm, batch, optimizer), 1, LocalWorld())
    curves[name], reached = run[0]
    print_once(f"{name:26} {len(curves[name]):4} steps, test accuracy {reached:.1%}")


report("batch 64", SMALL, SGD(RATE, 0.9))
report("1024, the same rate", LARGE, SGD(RATE, 0.9))

# %% [markdown]
# The large batch's gradient is less noisy, but it took only a sixteenth of the steps.
#
# ## Longer steps
#
# **Linear scaling**: k times the batch, k times the learning rate, so that an epoch goes as far.
# **Warm-up**: the rate increases slowly to its full value. Both runs below use the scaled rate, and
# let it fall to zero at the end.
#
# **Question 2.** At the beginning the loss curves strongly. Which of the two runs fails?

# %%
scaled = linear_scaling(RATE, LARGE, SMALL)
report("1024, rate × 16", LARGE, SGD(linear(scaled, 60), 0.9))
report("1024, rate × 16, warm-up", LARGE, SGD(warm_up(30, linear(scaled, 30)), 0.9))

# %% [markdown]
# At the beginning the curvature of the loss is too large for such steps: both runs jump (see the
# picture), but the one with a warm-up jumps less, and comes back.
#
# ## A step for each layer
#
# A rate that is right for one layer may be too large for another. **LARS** (arXiv 1708.03888) gives
# each layer a step in proportion to the norm of its own weights; **LAMB** (arXiv 1904.00962) does
# the same with Adam's direction in place of the gradient.
#
# **Question 3.** Will they beat the scaled rate with its warm-up here, on three layers?

# %%
report("1024, LARS, warm-up", LARGE, LARS(warm_up(10, 10.0), trust=2e-3))
report("1024, LAMB, warm-up", LARGE, LAMB(warm_up(20, linear(0.06, 40))))

# %% [markdown]
# Here they come about as near to the batch of 64 as the scaled rate does. The papers use them for
# deep networks, with batches of tens of thousands.

# %%
if first_process():
    figure, axes = plt.subplots(figsize=(11, 5), layout="constrained")
    for name, losses in curves.items():
        epochs = np.linspace(0, EPOCHS, len(losses))
        width = max(1, len(losses) // 25)
        smooth = np.convolve(losses, np.ones(width) / width, "valid")
        axes.plot(epochs[width - 1 :], smooth, label=name, linewidth=1.3)
    axes.set_ylim(0.2, 2.6)
    axes.set_title("training loss: batch of 64 and of 1024", loc="left")
    axes.set_xlabel("epochs")
    axes.set_ylabel("nats")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    print(f"picture: {save(figure, 'out/lessons/21_large_batches.png')}")

# %% [markdown]
# ## On real ranks
#
# The next lines run on the ranks that there are: four simulated ones under plain `python`, and real
# processes that send real messages under
#
#     minidist run -n 2 lessons/21_large_batches.py
#
# **Question 4.** With a batch of 1024, how many bytes does a rank send in an epoch, and with 64?


# %%
def an_epoch(comm, batch):
    method = DataParallel(mlp((784, 128, 64, 10)), CrossEntropy(), SGD(RATE, 0.9), comm)
    batches, before = Batches(training, batch, seed=0), comm.trace.sent.nbytes
    losses = [method.step(batches[step]) for step in range(batches.steps_per_epoch)]
    return losses, comm.trace.sent.nbytes - before


kind = "real" if launched_size() else "simulated"
for batch in (SMALL, LARGE):
    found = launch(lambda comm, n=batch: an_epoch(comm, n), 4)
    losses, sent = found[0]
    print_once(
        f"{len(found)} {kind} ranks, batch {batch:4}: {len(losses):3} steps, rank 0 sends "
        f"{sent / 1e6:6.1f} MB in an epoch, last loss {losses[-1]:.3f}"
    )

# %% [markdown]
# A sixteenth: a gradient has as many numbers for any batch, and one is sent in each step. On a slow
# network this alone is a reason for large batches.
#
# ## What to take away
#
# 1. A larger batch needs a larger rate: linear scaling gives it.
# 2. A warm-up keeps training stable at the beginning.
# 3. LARS and LAMB choose a separate step for each layer. One run of each is no ranking: other
#    rates and seeds move these accuracies, too.
#
# **Try it:**
#
# 1. Use a batch of 256, with the rate × 4. Does it need a warm-up?
# 2. With the scaled rate and a warm-up, does a batch of 2048 still come within two points of the
#    batch of 64?
#
# <details><summary>Answers</summary>
#
# 1. No: 86.2 % without and 86.6 % with one, if the rate falls to zero at the end (240 steps). With
#    a constant rate it ends at 81.8 %.
# 2. No. It has 30 steps: with the rate × 32 it learns nothing (10 %), with the rate × 16 it reaches
#    64 %. From some size on, more samples in a batch no longer replace steps.
#
# </details>
