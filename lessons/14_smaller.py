# %% [markdown]
# # 14. Smaller
#
# A trained model has more numbers than it needs, and each of them has more bits than it needs. This
# lesson makes one model smaller in five ways:
#
# - **zeros**: remove the weights that matter least;
# - **smaller arrays**: remove whole channels;
# - **fewer bits**: store each weight in 8 bits, or 4, in place of 32;
# - **low rank**: two thin matrices in place of one;
# - **a teacher**: train a small model on what the large one says.
#
# Each time we ask: how many bytes, how many seconds, how good? The answers differ: what makes a
# file smaller often makes nothing faster.
#
# About 45 minutes. At the end you know these five ways, which of them makes the file, the memory or
# the time smaller, and what each costs in accuracy.
#
# You need: lesson 4. `LESSON=long python lessons/14_smaller.py` trains longer.

# %%
import copy
import os

import matplotlib.pyplot as plt
import numpy as np
from rich import print as show
from rich.table import Table

from minidist import compress as small
from minidist.data import Augment, Batches, fashion_mnist
from minidist.inspect import accuracy
from minidist.models import cnn, mlp
from minidist.plots import save

LENGTH = os.environ.get("LESSON", "short")
TRAIN, TUNE = {"quick": (3, 2), "short": (500, 150), "long": (2000, 800)}[LENGTH]
train, test = fashion_mnist()
if LENGTH == "quick":
    _, test = test.split(0.1)
batches = Batches(train, 100, augment=Augment())

model = small.fit(cnn(8, hidden=64).init(0), batches, TRAIN, lr=3e-3)
results = {"trained": model}


def points(model):
    """Accuracy on images that were not trained on, in percent."""
    return 100 * accuracy(model.eval(), test)


print(f"trained: {points(model):.1f} %, {model.flat.size:,} parameters")

# %% [markdown]
# ## Zeros
#
# *Magnitude pruning* sets the smallest weights to zero: they change the result least. First without
# any further training, then with a few steps more. During these steps the removed weights are set
# to zero again after each step of the optimizer.
#
# **Question 1.** What share of the weights can be zero before the accuracy falls by a point?


# %%
def keep_zeros(masks):
    return lambda model, step: small.apply_masks(model, masks)


shares = (0.5, 0.7, 0.8, 0.9, 0.95)
before, after = [], []
for share in shares:
    pruned = copy.deepcopy(model)
    masks = small.magnitude_masks(pruned, share)
    small.apply_masks(pruned, masks)
    before.append(points(pruned))
    small.fit(pruned, batches, TUNE, 1e-3, after_step=keep_zeros(masks))
    after.append(points(pruned))
    print(f"{share:.0%} zeros: {before[-1]:.1f} %, after more training {after[-1]:.1f} %")

# %% [markdown]
# Half of the weights can go and nobody notices. With nine tenths gone the model guesses badly, but
# training repairs most of it. *Gradual* pruning removes little by little during that training: see
# `compress/gradual.py`, used in the next cell.
#
# **Question 2.** Nine tenths of the weights are zero. Which becomes ten times smaller: the file,
# the memory, or the work? (FLOPs are additions and multiplications of numbers.)

# %%
pruned = copy.deepcopy(model)
every = max(1, TUNE // 30)
gradual = small.GradualPruning(0.9, steps=TUNE // 2 // every * every, every=every)
small.fit(pruned, batches, TUNE, 1.5e-3, after_step=gradual.after_step)
results["nine tenths zero"] = pruned
for name in ("trained", "nine tenths zero"):
    taken = small.sizes(results[name], (28, 28))
    print(
        f"{name}: {taken.disk:,} bytes on disk, {taken.memory:,} in memory, {taken.flops:,} FLOPs"
    )

# %% [markdown]
# Only the file: it stores one bit for each zero. In memory the zeros are still numbers, and the
# processor multiplies by them like by any others: no second is saved.
#
# ## Smaller arrays
#
# To save time, arrays must shrink. A *channel* is one of the pictures that a convolution makes of
# its input. If a convolution loses one, three arrays change: its kernels, its biases, and what
# reads this channel in the next layer. `find_units` knows which.
#
# **Question 3.** Half of the channels and of the hidden units go. What share of the parameters is
# left?

# %%
for units in small.find_units(model).values():
    own = ", ".join(cut.name for cut in units.own)
    print(f"layer {units.layer}: {units.count} {units.kind}s in {own}; read by "
          f"{', '.join(cut.name for cut in units.readers)}")  # fmt: skip
half = small.shrink(model, small.keep_largest(model, 0.5))
print(f"half of each: {points(half):.1f} % before training, {half.flat.size:,} parameters")
small.fit(half, batches, 2 * TUNE, 3e-3, loss=small.Distillation(model))
results["half of the channels"] = half
print(f"after it: {points(half):.1f} %")

# %% [markdown]
# Half of the channels in and half of them out: about a quarter of the parameters, and of the FLOPs.
# This loses more than half of zeros do, so it needs more training.
#
# ## Fewer bits
#
# A *grid* of $2^b$ codes $q$ stands for real numbers $r = S \, (q - Z)$: $S$ is the distance of two
# codes' numbers, and $Z$ the code of zero.
#
# **Question 4.** With $b = 3$ bits for numbers from -0.5 to 1.25: what is $S$, and what becomes of
# 0.3, and of 7?

# %%
grid = small.asymmetric(np.array([-0.5]), np.array([1.25]), bits=3)
values = np.array([-0.5, -0.13, 0.0, 0.3, 0.9, 7.0])
print(f"S = {grid.scale[0]:.2f}, Z = {grid.zero[0]:.0f}")
print("values  ", values)
print("codes   ", grid.encode(values))
print("and back", grid.rounded(values))

# %% [markdown]
# The last value is outside the range and is clamped. A wide range makes all steps coarse, a
# narrow one clamps more: choosing it is called *calibration*. Now the whole model: int8 by layer,
# int8 with a scale for each channel, and only the weights in int4, with a scale for each 16.
#
# **Question 5.** How many points do 8 bits cost, without any training? And 4?

# %%
some = [train.batch(np.arange(200)).inputs]
results["int8 per tensor"] = small.quantize_int8(model, some, per_channel=False)
results["int8 per channel"] = small.quantize_int8(model, some, "squared error")
results["int4 in groups"] = small.quantize_weights(model, bits=4, group=16)
for name in ("int8 per tensor", "int8 per channel", "int4 in groups"):
    print(f"{name}: {points(results[name]):.1f} %")

# %% [markdown]
# Eight bits cost next to nothing, four about a point. Most processors compute faster with int8 than
# with floats; NumPy does not use these instructions, so here int8 is *slower*.
#
# ## Low rank
#
# The singular value decomposition writes a matrix as a sum of simple ones, the most important
# first. The first $r$ of them are two thin matrices; $r$ is called the *rank* (of the matrix; it
# has nothing to do with processes). The *singular value* of each says how important it is.
#
# **Question 6.** The largest matrix here has 64 singular values. How many of them have 90 % of the
# sum of their squares?

# %%
weight = model.blocks["8"].weight.data  # (features, hidden): most of the parameters
sigma = np.linalg.svd(weight, compute_uv=False)
thin = small.factor(model, energy=0.9)
print(f"90 % of the squared singular values: rank {thin.blocks['8'].rank} of {len(sigma)}")
small.fit(thin, batches, TUNE, 1e-3)
results["low rank"] = thin

# %% [markdown]
# About half of them, and two thin matrices of this rank have about half as many numbers as the
# whole.
#
# ## A teacher
#
# A small MLP learns from labels alone, and then again from what the trained CNN says about each
# image: that this shirt looks a little like a coat. This is called *distillation*.
#
# **Question 7.** Is the second one better? Do not trust one run: compare over several seeds, and
# look at the spread.

# %%
plain = Batches(train, 100)
found = {"alone": [], "with a teacher": []}
for seed in range(1 if LENGTH == "quick" else 3):
    for name, more in (
        ("alone", {}),
        ("with a teacher", {"loss": small.Distillation(model, 2.0, 0.5)}),
    ):
        student = small.fit(mlp((784, 32, 10)).init(seed), plain, 2 * TUNE, 3e-3, **more)
        found[name].append(points(student))
for name, reached in found.items():
    low, high = min(reached), max(reached)
    print(f"{name}: {np.mean(reached):.1f} % on average, from {low:.1f} to {high:.1f}")

# %% [markdown]
# Not here: the teacher is no better than the student, and the run is short.
#
# ## All of them
#
# The models take turns, so that the times can be compared. `minidist compress` makes such a table,
# longer, for a CNN or a GPT.

# %%
inputs = test.batch(np.arange(100)).inputs
seconds = small.seconds_a_sample(list(results.values()), inputs)
rows = []
for (name, one), time in zip(results.items(), seconds, strict=True):
    taken = small.sizes(one, (28, 28))
    rows.append({"name": name, "disk": taken.disk, "memory": taken.memory, "seconds": time,
                 "after": points(one)})  # fmt: skip
view = Table(title="One model, made smaller")
for heading in ("model", "KB on disk", "KB in memory", "ms a sample", "accuracy"):
    view.add_column(heading, justify="left" if heading == "model" else "right")
for row in rows:
    row["lost"] = rows[0]["after"] - row["after"]
    view.add_row(row["name"], f"{row['disk'] / 1e3:.0f}", f"{row['memory'] / 1e3:.0f}",
                 f"{row['seconds'] * 1e3:.3f}", f"{row['after']:.1f} %")  # fmt: skip
show(view)
for goal in small.GOALS:
    print(f"{goal}: take {small.choose({'rows': rows}, goal, lose=1.0)['name']!r}")

# %%
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
left.plot(shares, before, "o--", color="0.6", label="at once")
left.plot(shares, after, "o-", color="#1f618d", label="after more training")
left.set(xlabel="share of zeros", ylabel="accuracy (%)", title="Zeros")
left.legend(frameon=False)
middle.semilogy(range(1, len(sigma) + 1), sigma, color="#1f618d")
middle.axvline(thin.blocks["8"].rank, color="#b9770e", ls=":")
middle.set(xlabel="number", ylabel="singular value", title="Low rank: the values left of the line")
for row in rows:
    right.plot(row["disk"] / 1e3, row["after"], "o", ms=8)
    below = "tensor" in row["name"]  # the other int8 model is at nearly the same place
    right.annotate(row["name"], (row["disk"] / 1e3, row["after"]), (6, -12 if below else 4),
                   fontsize=8, textcoords="offset points")  # fmt: skip
right.set(xscale="log", xlabel="KB on disk", ylabel="accuracy (%)", title="All of them")
right.set_xticks([30, 50, 100, 200], ["30", "50", "100", "200"])
right.minorticks_off()
for axes in (left, middle, right):
    axes.spines[["top", "right"]].set_visible(False)
print("picture:", save(figure, "out/lessons/14_smaller.png"))

# %% [markdown]
# ## What to take away
#
# 1. Say what should be smaller: the file, the memory, or the time. Zeros help the file, bits help
#    file and memory, smaller arrays help all three.
# 2. Eight bits are almost free. Take them first.
# 3. What was lost comes back with more training. A teacher helps if it is much better than its
#    student and the student trains for long; in the short run above it need not.
# 4. Measure time on the machine that will compute: fewer FLOPs or bits are not always faster.
#
# **Try it:**
#
# 1. Combine two ways: `quantize_int8` of the model with half of its channels. Is the loss of
#    accuracy the sum of both?
# 2. Give each 4 weights a scale of their own: `quantize_weights(model, bits=4, group=4)`. What is
#    gained, and what does it cost?
#
# <details><summary>Answers</summary>
#
# 1. Not even the sum: 81.1 % in place of 81.3. What is left does not need more bits.
# 2. 83.7 % in place of 83.0, and 83 KB on disk in place of 44: the scales take twice as
#    much as the codes.
#
# </details>
