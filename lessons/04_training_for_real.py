# %% [markdown]
# # 4. Training for real: images, then characters
#
# This lesson uses everything so far, twice. First a convolutional network learns to classify
# clothes; then a small GPT learns Shakespeare letter by letter, and continues a text. Both have the
# same training loop, and both are tested on data that they have *not* seen.
#
# You need: lessons 1 to 3. `python lessons/04_training_for_real.py` takes a minute or two and shows
# the result of a short training. `LESSON=long python lessons/04_training_for_real.py` takes four
# minutes on two cores of a new server, and reaches 90 % on the images and less than 1.8 nats a
# character on the text.

# %%
import os
import textwrap
import time
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
from rich import print as show

import minidist as md
from minidist import models, nn, optim
from minidist.data import Augment, Batches, fashion_mnist, shakespeare, token_windows
from minidist.data.fashion_mnist import CLASSES
from minidist.inspect import metrics, summary
from minidist.optim.schedules import cosine, warm_up
from minidist.plots import plot_confusion, save


@dataclass
class Size:
    image_steps: int
    text_steps: int
    context: int
    width: int
    layers: int


SIZES = {
    "quick": Size(image_steps=4, text_steps=6, context=16, width=16, layers=1),
    "short": Size(image_steps=400, text_steps=700, context=64, width=96, layers=3),
    "long": Size(image_steps=1400, text_steps=2000, context=128, width=128, layers=4),
}
LENGTH = os.environ.get("LESSON", "short")
size = SIZES[LENGTH]

# %% [markdown]
# ## One loop for all
#
# These lines train everything in this lesson. Three things are new since lesson 3:
#
# - **AdamW with warm-up and cosine**: small steps at the start and at the end.
# - **Clipping**: if an unusual batch gives a huge gradient, scale it down; its direction stays.
# - **Counting**: `part.count` is the number of targets in the *whole* batch: it divides the loss.
#   So a batch that is too large for memory may be cut into *microbatches*, and their gradients add
#   up to that of the batch. In later lessons the parts are on different computers.


# %%
def fit(model, batches, steps, lr, watch, every, microbatches=1):
    """Train; every few steps call ``watch`` and store (step, loss, its result)."""
    cross_entropy = nn.CrossEntropy()
    optimizer = optim.AdamW(
        warm_up(max(1, steps // 20), cosine(lr, steps, final=lr / 20)),
        betas=(0.9, 0.99),
        weight_decay=0.1,
        exclude=("*bias", "*norm*", "*position"),
    )
    optimizer.bind(model.flat.slices)  # it must know which parameters have no decay
    history, start = [], time.perf_counter()
    for step in range(steps):
        batch = batches[step]
        model.zero_grad()
        total = 0.0
        for part in batch.microbatches(microbatches):
            loss = cross_entropy(model(part.inputs), part.targets, part.count(cross_entropy))
            loss.backward()
            total += loss.item()
        optim.clip_by_global_norm(model.flat.grad, 1.0)
        optimizer.step(model.flat.data, model.flat.grad)
        if step % every == 0 or step == steps - 1:
            history.append((step, total, watch(model)))
            seconds = time.perf_counter() - start
            print(f"step {step:5}: loss {total:.3f}, watched {history[-1][2]:.3f}, {seconds:.0f} s")
    return history


# %% [markdown]
# ## Images
#
# Fashion-MNIST has 10,000 small grey images for training and 2,000 others for the test. Each time
# an image is used, it is moved a little and perhaps mirrored: a coat is still a coat. This is
# called augmentation; it has an effect similar to that of more images.

# %%
train, test = fashion_mnist()
images = Batches(train, 100, augment=Augment(flip=0.5, shift=2))
cnn = models.cnn(channels=16).init(seed=0)
show(summary(cnn, (100, 28, 28)))
image_history = fit(
    cnn,
    images,
    size.image_steps,
    lr=3e-3,
    watch=lambda model: metrics.accuracy(model, test),
    every=100,
)

# %% [markdown]
# ### Where is it wrong?
#
# One number does not show everything. The *confusion matrix* counts, for each class, how often each
# class was guessed. From it we compute **precision** (how many of the images classified as shirts
# are shirts?), **recall** (how many of all shirts were classified as shirts?), and F1, which is
# high only if both are high.

# %%
cnn.eval()
with md.no_grad():
    guesses = np.concatenate([cnn(part.inputs).data.argmax(axis=1) for part in test.chunks()])
counts = metrics.confusion_matrix(test.targets, guesses, len(CLASSES))
print(f"accuracy {np.trace(counts) / counts.sum():.1%}, macro F1 {metrics.f1(counts):.3f}")
for name, precision, recall in zip(
    CLASSES, metrics.precision(counts, None), metrics.recall(counts, None), strict=True
):
    print(f"  {name:11} precision {precision:.2f}  recall {recall:.2f}")

# %%
wrong = np.flatnonzero(guesses != test.targets)

figure = plt.figure(figsize=(13, 5.6), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=[1, 1.05])
plot_confusion(left.subplots(), counts, CLASSES)
panels = right.subplots(4, 6)
right.suptitle("Wrong guesses: guess (target)", fontsize=12)
for axes, index in zip(panels.flat, wrong[:: max(1, len(wrong) // 24)], strict=False):
    axes.imshow(test.inputs[index], cmap="gray_r")
    axes.set_title(
        f"{CLASSES[guesses[index]]}\n({CLASSES[test.targets[index]]})", fontsize=8, color="#c0392b"
    )
for axes in panels.flat:
    axes.axis("off")
print("picture:", save(figure, "out/lessons/04_images.png"))

# %% [markdown]
# Most of the mistakes are between shirt, T-shirt, pullover and coat. Look at the images: would you
# have classified them correctly?
#
# ## Characters
#
# Now a text. The model reads some letters and predicts the next one, at all positions at once. The
# last tenth of the text is kept for the test. The loss has a direct meaning: with a loss of $\ell$
# *nats* the model is as uncertain as a choice among $e^\ell$ equally likely letters. This number is
# its **perplexity**.

# %%
BATCH = 16
text_train, text_test = shakespeare(size.context, stride=1)
gpt = models.gpt(text_train.classes, size.context, size.width, size.layers, heads=4).init(seed=0)
show(summary(gpt, (BATCH, size.context)))

prompt = "HAMLET:\n"


def write(model, letters=220, seed=1):
    """Continue the prompt by sampling from the model's likely letters."""
    tokens = text_train.encode(prompt)
    return text_train.decode(models.sample(model, tokens, letters, 0.8, top_k=20, seed=seed))


# How good is a prediction without a network, from the counts of letters and of pairs of letters?
tokens, exam = text_train.inputs.tokens, text_test.inputs.tokens
letters = text_train.classes
single = np.bincount(tokens, minlength=letters) + 1.0
pairs = np.ones((letters, letters))
np.add.at(pairs, (tokens[:-1], tokens[1:]), 1)
baselines = {
    "any letter": np.log(letters),
    "by frequency": -np.log(single / single.sum())[exam].mean(),
    "by the one before": -np.log(pairs / pairs.sum(1, keepdims=True))[exam[:-1], exam[1:]].mean(),
}
for name, nats in baselines.items():
    print(f"{name:21} {nats:.2f} nats, perplexity {metrics.perplexity(nats):5.1f}")

# %%
cross_entropy = nn.CrossEntropy()
# The whole test text has 126,000 letters; during training, every tenth window is enough.
some = token_windows("some of it", exam, size.context, letters, stride=10 * size.context)
writings = {}


def watch_text(model):
    writings[len(writings)] = write(model, letters=120)
    return metrics.mean_loss(model, cross_entropy, some, chunk=32)


text_history = fit(
    gpt,
    Batches(text_train, BATCH),
    size.text_steps,
    lr=2e-3,
    watch=watch_text,
    every=max(1, size.text_steps // 7),
)
held_out = metrics.mean_loss(gpt, cross_entropy, text_test, chunk=32)
print(f"held-out: {held_out:.3f} nats, perplexity {metrics.perplexity(held_out):.1f}")
text = write(gpt, letters=400)
print(prompt + text)

# %% [markdown]
# ### Writing
#
# To write, we use the model's output at the last position as probabilities, draw a letter, append
# it, and repeat. **Temperature** 0.8 makes likely letters more likely; **top-k** 20 allows only the
# 20 most likely letters. Keys and values of earlier letters are kept in a cache, so that each new
# letter needs a forward of one position only.

# %%
figure = plt.figure(figsize=(13, 4.6), layout="constrained")
curve, page = figure.subplots(1, 2, width_ratios=[1, 1.25])
steps, losses, watched = zip(*text_history, strict=True)
curve.plot(steps, losses, "o--", color="0.6", label="training batch", ms=4)
curve.plot(steps, watched, "o-", color="#1f618d", label="held-out text", ms=5, lw=2)
for name, nats in baselines.items():
    curve.axhline(nats, color="#b9770e", lw=1, ls=":")
    curve.text(steps[-1], nats + 0.03, name, ha="right", color="#b9770e", fontsize=9)
curve.set(xlabel="step", ylabel="nats a character")
curve.set_title(f"Held-out: {held_out:.2f} nats, perplexity {metrics.perplexity(held_out):.1f}")
curve.legend(frameon=False, loc="upper right", bbox_to_anchor=(1, 0.9))
curve.spines[["top", "right"]].set_visible(False)

first, middle = 0, len(writings) // 3
pieces = [(steps[first], writings[first]), (steps[middle], writings[middle]), (steps[-1], text)]
lines = []
for step, piece in pieces:
    wrapped = [part for line in piece.split("\n") for part in (textwrap.wrap(line, 72) or [""])]
    lines += [f"── after {step} steps " + "─" * 52, *wrapped[: 4 if step != steps[-1] else 11], ""]
page.text(0, 1, "\n".join(lines), family="monospace", fontsize=9.5, va="top")
page.axis("off")
print("picture:", save(figure, "out/lessons/04_characters.png"))

# %% [markdown]
# ## What to take away
#
# 1. The same loop trains every model; only the model, the data and the optimizer change.
# 2. Test on held-out data, and look at the mistakes, not only at one number.
# 3. A batch may be cut into parts whose gradients add up, *if* the loss is divided by the count of
#    the whole batch. Because of this rule, the parallel methods in the next lessons are exact.
#
# **Try it:** call `fit(..., microbatches=4)`: are the losses the same? Why not to the last digit?
# Give `write` a temperature of 0.2 and of 2. Train on a text of your own with
# `minidist.data.text_file`.
#
# **Marked exercise:** `minidist exercise start cross_entropy`.
