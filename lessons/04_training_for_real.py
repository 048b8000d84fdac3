# %% [markdown]
# # 4. Training for real: images
#
# A network learns to tell shirts from shoes, and is tested on images that it has *not* seen. Its
# new layer is the convolution: you compute one by hand before you use it. Then comes the training
# loop on which all later lessons build, and a close look at the mistakes.
#
# About 25 minutes. At the end you know what a convolution computes and why it has so few weights,
# how to cut a batch into parts without changing the result, and how to see which classes a model
# confuses.
#
# You need: lessons 1 to 3. Run it with `python lessons/04_training_for_real.py`; it trains for half
# a minute or so. With `LESSON=long` in front (in bash) it trains longer, and reaches 90 % on the
# test images.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle
from rich import print as show

import minidist as md
from minidist import models, nn, ops, optim
from minidist.data import Augment, Batches, fashion_mnist
from minidist.data.fashion_mnist import CLASSES
from minidist.inspect import metrics, summary
from minidist.optim.schedules import cosine, warm_up
from minidist.plots import plot_confusion, save

STEPS = {"quick": 4, "short": 400, "long": 1400}[os.environ.get("LESSON", "short")]
train, test = fashion_mnist()

# %% [markdown]
# ## A convolution, by hand
#
# An image is a grid of numbers, its *pixels*. A *kernel* is a small grid, here 3 × 3. Lay the
# kernel on the image, multiply each pixel by the number that lies on it, and add up the nine
# products: that is *one* number of the result. Move the kernel by one pixel, and do it again:
#
#     image             kernel         result
#     0 0 0 1 1 1       -1  0  1       ? ? ? ?
#     0 0 0 1 1 1       -1  0  1       ? ? ? ?
#     0 0 0 1 1 1       -1  0  1       ? ? ? ?
#     0 0 0 1 1 1
#     0 0 0 1 1 1
#
# **Question 1.** The image is dark (0) on the left and bright (1) on the right. Which numbers of
# the result are not 0, and how large are they?


# %%
def convolve(image, kernel):
    """One number for each place of a 3 × 3 kernel on the image: (h, w) → (h - 2, w - 2)."""
    height, width = image.shape
    result = np.zeros((height - 2, width - 2))
    for row in range(height - 2):
        for column in range(width - 2):
            result[row, column] = (image[row : row + 3, column : column + 3] * kernel).sum()
    return result


dark_then_bright = np.tile([0.0, 0, 0, 1, 1, 1], (5, 1))
vertical = np.tile([-1.0, 0, 1], (3, 1))
result = convolve(dark_then_bright, vertical)
print(result)
images = md.Tensor(dark_then_bright[None, None])  # (images, channels, height, width)
assert (ops.conv2d(images, md.Tensor(vertical[None, None])).data[0, 0] == result).all()

# %% [markdown]
# The result is 3 where the brightness changes, and 0 where it does not: this kernel finds vertical
# edges. It finds them at every position with the same nine numbers. In a network nobody chooses
# these numbers: they are weights, and training finds them.
#
# A *convolution layer* has many kernels, and each gives a result of its own, a *channel*. A later
# layer's kernel looks at all channels at once. With *padding* 1, a border of zeros is put around
# the image, so that the result has the image's size.
#
# **Question 2.** A linear layer from 784 pixels to 784 numbers has a weight for each pair. How many
# parameters has it, and how many has a convolution with one kernel (with its bias)?

# %%
for layer in (nn.Linear(784, 784), nn.Conv2d(1, 1, kernel=3, padding=1)):
    parameters = sum(parameter.size for parameter in layer.parameters())
    print(f"{layer!r:40} {parameters:7,} parameters")

# %% [markdown]
# After a convolution comes *max pooling*: of each 2 × 2 numbers it keeps the largest. The image
# becomes half as high and half as wide; *that* an edge is there is kept, and where exactly is not.


# %%
def numbers(axes, grid, title, at=None, size=1):
    """Draw a small grid with its numbers, and a frame around some of them."""
    axes.imshow(grid, cmap="gray", vmin=-5, vmax=3)  # bright is large
    for (row, column), value in np.ndenumerate(grid):
        axes.text(column, row, f"{value:g}", ha="center", va="center", fontsize=11)
    if at is not None:
        corner = at[1] - 0.5, at[0] - 0.5
        axes.add_patch(Rectangle(corner, size, size, fill=False, ec="#c0392b", lw=3))
    axes.set(title=title, xticks=[], yticks=[])


boot = test.inputs[np.flatnonzero(test.targets == CLASSES.index("ankle boot"))[0]] / 255.0
figure, (above, below) = plt.subplots(2, 3, figsize=(10.5, 6.4), layout="constrained")
numbers(above[0], dark_then_bright, "image, kernel laid on the red part", (1, 2), 3)
numbers(above[1], vertical, "kernel")
numbers(above[2], result, "result: red is the sum of the nine products", (1, 2))
edges = np.abs(convolve(boot, vertical))
pooled = edges.reshape(13, 2, 13, 2).max(axis=(1, 3))
for axes, picture, title in zip(
    below,
    (boot, edges, pooled),
    ("an image, 28 × 28", "its vertical edges, 26 × 26 (no padding)", "after max pooling, 13 × 13"),
    strict=True,
):
    axes.imshow(picture, cmap="gray")
    axes.set(title=title, xticks=[], yticks=[])
print("picture:", save(figure, "out/lessons/04_convolution.png"))

# %% [markdown]
# ## The network
#
# Twice: convolution, ReLU, max pooling. Then two linear layers, from what was found where, to a
# score for each of the ten classes. Look at the column of parameters: where are most of them?

# %%
cnn = models.cnn(channels=16).init(seed=0)
show(summary(cnn, (100, 28, 28)))

# %% [markdown]
# In the first linear layer: it has a weight for each pair, and the convolutions have hardly any.
#
# ## A batch in parts
#
# The gradient of a batch is a mean over its samples. If a batch is too large for the memory, cut it
# into *microbatches*, and let each add its part to the gradient.
#
# **Question 3.** A batch of 100 is cut into 4 microbatches of 25. By which number must each part
# divide its sum of losses, so that the parts add up to the gradient of the batch: 25 or 100?

# %%
cross_entropy = nn.CrossEntropy()
batch = Batches(train, 100)[0]


def gradient(microbatches, count=None):
    cnn.zero_grad()
    for part in batch.microbatches(microbatches):
        loss = cross_entropy(cnn(part.inputs), part.targets, count or part.count(cross_entropy))
        loss.backward()  # adds to the gradient
    return cnn.flat.grad.copy()


whole = gradient(1)
for count in (25, 100):
    ratio = np.linalg.norm(gradient(4, count)) / np.linalg.norm(whole)
    print(f"divided by {count:3}: the gradient is {ratio:.3f} times that of the batch")
difference = np.linalg.norm(gradient(4) - whole) / np.linalg.norm(whole)
print(f"divided by part.count(...): off by {difference:.0e}")

# %% [markdown]
# By 100: the number of samples in the *whole* batch. `part.count` knows it. In later lessons the
# parts are on different computers, and the same rule makes parallel training exact.
#
# ## The loop
#
# These are the five lines of lesson 2 (zero, forward, loss, backward, step), for each part of each
# batch. Adam and its schedule are those of lesson 3. Every 100 steps we look at the accuracy on
# 2,000 *test* images, which are never trained on: a model could learn its training images by heart.
#
# The training images are varied, too: each time, an image is moved by up to two pixels and perhaps
# mirrored. A coat is still a coat. This is called *augmentation*; it acts like more images.


# %%
def fit(model, batches, steps, lr, microbatches=1):
    """Train a model; returns (step, loss, accuracy on the test images) of every 100 steps."""
    optimizer = optim.Adam(warm_up(max(1, steps // 20), cosine(lr, steps, final=lr / 20)))
    history = []
    for step in range(steps):
        model.zero_grad()
        total = 0.0
        for part in batches[step].microbatches(microbatches):
            loss = cross_entropy(model(part.inputs), part.targets, part.count(cross_entropy))
            loss.backward()
            total += loss.item()
        optimizer.step(model.flat.data, model.flat.grad)
        if step % 100 == 0 or step == steps - 1:
            history.append((step, total, metrics.accuracy(model, test)))
            print(f"step {step:4}: loss {total:.3f}, test accuracy {history[-1][2]:.1%}")
    return history


history = fit(cnn, Batches(train, 100, augment=Augment(flip=0.5, shift=2)), STEPS, lr=3e-3)

# %% [markdown]
# ## Where is it wrong?
#
# One number does not show everything. The *confusion matrix* has a row for each class and says how
# its test images were classified. **Question 4.** Between which of these classes do you expect the
# most mistakes: T-shirt, trousers, pullover, dress, coat, sandal, shirt, sneaker, bag, ankle boot?

# %%
with md.no_grad():
    guesses = np.concatenate([cnn(part.inputs).data.argmax(axis=1) for part in test.chunks()])
counts = metrics.confusion_matrix(test.targets, guesses, len(CLASSES))
print(f"accuracy {np.trace(counts) / counts.sum():.1%}")
mistakes = np.where(np.eye(len(CLASSES)), 0, counts)
for flat in mistakes.ravel().argsort()[::-1][:5]:
    target, guess = divmod(flat, len(CLASSES))
    print(f"{mistakes[target, guess]:3} × {CLASSES[target]} was taken for {CLASSES[guess]}")

# %%
wrong = np.flatnonzero(guesses != test.targets)
figure = plt.figure(figsize=(13, 5.6), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=[1, 1.05])
plot_confusion(left.subplots(), counts, CLASSES)
panels = right.subplots(4, 6)
right.suptitle("Wrong guesses: guess (target)", fontsize=12)
for axes, index in zip(panels.flat, wrong[:: max(1, len(wrong) // 24)], strict=False):
    axes.imshow(test.inputs[index], cmap="gray_r")
    title = f"{CLASSES[guesses[index]]}\n({CLASSES[test.targets[index]]})"
    axes.set_title(title, fontsize=8, color="#c0392b")
for axes in panels.flat:
    axes.axis("off")
print("picture:", save(figure, "out/lessons/04_images.png"))

# %% [markdown]
# Most of the mistakes are between shirt, T-shirt, pullover and coat. Look at the images: would you
# have classified them correctly?
#
# ## What to take away
#
# 1. A convolution uses the same few weights at every position of the image.
# 2. A batch may be cut into parts whose gradients add up, *if* each part's loss is divided by the
#    number of samples in the whole batch.
# 3. Test on images that were not trained on, and look at the mistakes, not only at one number.
#
# **Try it:**
#
# 1. Train a second model with `fit(..., microbatches=4)`. Are its losses those of the first?
# 2. Turn the kernel: `convolve(boot, vertical.T)`. What does it find? And what does a kernel of
#    nine times 1/9 do to an image?
# 3. Train without augmentation (`Batches(train, 100)`). What happens to the training loss, and what
#    to the test accuracy?
#
# <details><summary>Answers</summary>
#
# 1. To seven digits in the first step, and less and less later: 0.639 in place of 0.643 after 100
#    steps. The parts are added up in another order, which changes the last digit; each step begins
#    where the last one ended, so the difference grows. Neither model is better.
# 2. Horizontal edges. A kernel of 1/9 takes the mean of nine pixels: the image becomes blurred.
# 3. After 400 steps the loss is 0.31 in place of 0.46, and the accuracy 88.3 % in place of 86.9 %:
#    the same images come again. After 1,400 steps (`LESSON=long`) the loss is 0.03 in place of
#    0.16, and the accuracy is 90.1 % with both: it knows 98 % of its training images by heart, and
#    on the test images that is no help.
#
# </details>
#
# Next: attention, the layer of language models, in [lesson 23](23_attention.py). Or messages at
# once, in [lesson 5](05_messages.py); then read lesson 23 before lesson 15.
