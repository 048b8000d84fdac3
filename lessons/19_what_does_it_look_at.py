# %% [markdown]
# # 19. What does it look at?
#
# A model says "ankle boot". Which pixels made it say so? This lesson draws *maps* that answer:
#
# - **gradients**: what would a small change of a pixel do?
# - **integrated gradients**: how do the changes add up on the way from nothing to the image?
# - **occlusion**: what happens if a part is covered?
# - **attention**: from where does a language model read?
#
# Then it asks whether to believe them. A map always looks like an explanation.
#
# About 45 minutes. At the end you know four kinds of maps and the question that each answers, two
# checks of a map, and what maps are good for.
#
# You need: lessons 4 and 23. `LESSON=long python lessons/19_what_does_it_look_at.py` trains longer.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np

from minidist import explain
from minidist.compress import fit
from minidist.data import Batches, Dataset, fashion_mnist, shakespeare
from minidist.data.fashion_mnist import CLASSES
from minidist.inspect import accuracy
from minidist.models import cnn, gpt, mlp
from minidist.nn import Linear, ReLU, Sequential
from minidist.plots import save
from minidist.plots.maps import draw_attention, draw_map, draw_text_map

LENGTH = os.environ.get("LESSON", "short")
TRAIN, TEXT, MANY = {"quick": (3, 3, 4), "short": (300, 200, 50), "long": (2000, 1500, 100)}[LENGTH]
train, test = fashion_mnist()
model = fit(cnn(8, hidden=64).init(0), Batches(train, 100), TRAIN, lr=3e-3).eval()
print(f"accuracy on test images: {accuracy(model, test.split(0.25)[1]):.1%}")

# %% [markdown]
# ## What is explained?
#
# One number: the *score* $S$ of one class, before the softmax. By default the class that the model
# finds the likeliest. Why not its probability? A probability also rises when another class falls.
# The pixels would then be those that speak against a shirt, and we would read them as those that
# speak for a coat.
#
# ## The gradient
#
# $\partial S / \partial x_i$ says what a small change of pixel $i$ would do.
#
# **Question 1.** A pixel has gradient 0. Does it not matter?
#
# Take a model of one number that is sure from $x = 1$ on: $f(x) = 1 - \mathrm{relu}(1 - x)$.

# %%
sure = Sequential(Linear(1, 1), ReLU(), Linear(1, 1)).init(0)
for layer in ("0", "2"):
    sure.blocks[layer].weight.data[...] = -1
    sure.blocks[layer].bias.data[...] = 1
at = np.array([[2.0]], np.float32)
print(f"f(2) - f(0) = {float(sure(at).data[0, 0] - sure(0 * at).data[0, 0]):.1f}")
print(f"gradient at 2: {explain.gradient(sure, at)[0, 0]:.1f}")
print(f"integrated gradient from 0 to 2: {explain.integrated_gradients(sure, at)[0, 0]:.3f}")

# %% [markdown]
# All of $f(2)$ is due to $x$. Yet the gradient at 2 is 0: the model is so sure that a small change
# does nothing. What *counts* is more than what a small change does.
#
# ## Integrated gradients
#
# Walk from a *baseline* $b$, which stands for nothing, straight to the image, and add up the
# gradients on the way:
# $(x_i - b_i) \int_0^1 \partial S/\partial x_i(b + \alpha (x - b))\, d\alpha$. They add up to
# $S(x) - S(b)$, the whole difference (*completeness*). The integral is a sum over steps.
#
# **Question 2.** How many steps does it take?

# %%
images = test.batch(np.arange(MANY)).inputs
for steps in (4, 16, 64, 256)[: 2 if LENGTH == "quick" else 4]:
    maps = explain.integrated_gradients(model, images, steps=steps)
    gap = explain.completeness_gap(maps, model, images)
    print(f"{steps:4} steps: off by {np.median(gap):.2%} in the median, {gap.max():.2%} at most")

# %% [markdown]
# The network is a surface of flat pieces, and the sum makes an error wherever the way crosses an
# edge between two. Always look at this gap: a map with a large one is not what it claims to be.
#
# What is "nothing" in a picture? That is a choice, and the map depends on it. Here 0 is the mean
# grey, since pixels were scaled to mean 0. With black as the baseline, black pixels can never
# count: $x_i - b_i$ is 0 there, although the black around a boot tells its outline.
#
# ## Occlusion
#
# Cover a square, see how far $S$ drops, go on to the next. No derivatives are needed.
#
# **Question 3.** Two features of which either one is enough, as in $f = \max(x_1, x_2)$: what does
# occlusion say of each?

# %%
either = Sequential(Linear(2, 3), ReLU(), Linear(3, 1)).init(0)  # relu(a - b) + relu(b) - relu(-b)
either.load({
    "0.weight": np.array([[1, 0, 0], [-1, 1, -1]]), "0.bias": np.zeros(3),
    "2.weight": np.array([[1], [1], [-1]]), "2.bias": np.zeros(1),
})  # fmt: skip
both = np.array([[1.0, 1.0]], np.float32)
print("max(1, 1) by occlusion:", explain.occlude(either, both, patch=1)[0])
print("by integrated gradients:", explain.integrated_gradients(either, both, baseline=0.0)[0])

# %% [markdown]
# Occlusion gives both 0: covering one changes nothing, since the other is still there. It answers
# what would happen *without this part*, and no more. Integrated gradients give the whole to one of
# the two here, and if the way went a little to the other side, to the other: at (1, 1) the two are
# at an edge.
#
# ## All of them, side by side

# %%
METHODS = {
    "gradient": explain.gradient,
    "gradient × input": explain.gradient_times_input,
    "integrated gradients": explain.integrated_gradients,
    "occlusion": lambda *given: explain.occlude(*given, patch=6, stride=3),
}
targets = np.asarray(test.targets)
which = [int(np.flatnonzero(targets == label)[1]) for label in (9, 7, 1, 8)]
shown = test.batch(which).inputs
figure, axes = plt.subplots(4, 5, figsize=(9, 7.6), layout="constrained")
guesses = model(shown).data.argmax(1)
for row, image in enumerate(np.asarray(shown)):
    axes[row, 0].imshow(image, cmap="Greys")
    axes[row, 0].set_title(f"“{CLASSES[guesses[row]]}”", fontsize=9)
    axes[row, 0].set_axis_off()
for column, (name, way) in enumerate(METHODS.items(), 1):
    for row, values in enumerate(way(model, shown)):
        draw_map(axes[row, column], values, np.asarray(shown)[row], name if row == 0 else "")
print(f"picture: {save(figure, 'out/lessons/19_maps.png')}")

# %% [markdown]
# Red speaks for the class, blue against it. They differ, and each looks reasonable.
#
# **Question 4.** A filter that finds edges draws reasonable maps too, of any image, without any
# model. How can we find out that a method is not just that?
#
# ## The check: random weights
#
# Explain the same class of the same images by a model that has learned nothing. We replace the
# weights block by block, from the output on, and ask how similar the maps still are: the
# correlation between the *ranks* of their pixels.

# %%
figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
few = images[: max(2, MANY // 5)]
for name, way in METHODS.items():
    found = explain.cascade(way, model, few)
    means = [1.0, *(values.mean() for values in found.values())]
    axes.plot(range(len(means)), means, marker="o", label=name)
    print(f"{name:22} all weights random: correlation {means[-1]:5.2f}")
axes.set_xticks(range(len(means)), ["learned", *(f"block {name}\nand later" for name in found)])
axes.set_ylabel("rank correlation of |map|")
axes.set_ylim(-0.1, 1.05)
axes.axhline(0, color="grey", linewidth=0.5)
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False)
print(f"picture: {save(figure, 'out/lessons/19_random_weights.png')}")

# %% [markdown]
# The gradient's map is gone when the weights are. What has the input as a factor keeps a part of
# its order: where the image is at the baseline, the map is 0 with any weights. That part does not
# come from learning. So part of what we admired above was the picture itself.
#
# ## What maps are good for: a model that cheats
#
# Somebody has marked the training images: a small bright spot, at a place that depends on the
# class.
#
# **Question 5.** The accuracy on images from the same source is excellent. Would you use the
# model?


# %%
def marked(dataset):
    """The same images, with 3 × 2 bright pixels in the top rows, where their class says."""
    pixels = np.array(dataset.inputs)
    for label in range(10):
        start = 2 * label + 3
        pixels[np.asarray(dataset.targets) == label, 0:3, start : start + 2] = 255
    return Dataset("marked", pixels, dataset.targets, 10, dataset.prepare)


cheat = fit(mlp((784, 64, 10)).init(0), Batches(marked(train), 100), TRAIN, lr=3e-3).eval()
print(f"test images with the mark {accuracy(cheat, marked(test)):.1%}")
print(f"test images as they are   {accuracy(cheat, test):.1%}")
maps = explain.integrated_gradients(cheat, marked(test).batch(np.arange(MANY)).inputs)
share = np.abs(maps[:, :3]).sum() / np.abs(maps).sum()
print(f"{share:.0%} of the map lies in the top 3 of 28 rows, which are {3 / 28:.0%} of the image")

# %% [markdown]
# The map shows it in a second: the model looks at the mark. That is the best use of maps: to find
# that a model is right for a wrong reason. A good-looking map is no proof that it is right for a
# good one.
#
# ## A language model: attention
#
# Each layer and head of a GPT has weights that say from which positions it reads. They are there
# anyway. Tokens have no gradient, but their embeddings do: a token's part is the sum over its
# embedding. "Nothing" is the mean of all tokens' embeddings.

# %%
text, _ = shakespeare(32)
reader = fit(gpt(text.classes, 32, 64, 2, 4).init(0), Batches(text, 32), TEXT, lr=3e-3).eval()
sentence = "First Citizen:\nWe are accounted"[:24]
tokens = np.asarray(text.encode(sentence))[None]
layers = explain.attention_maps(reader, tokens)
rolled = explain.attention_rollout(layers)
figure = plt.figure(figsize=(10, 6.4), layout="constrained")
grid = figure.add_gridspec(4, 3, height_ratios=[4, 1, 1, 1])
for column, (name, weights) in enumerate({
    "layer 1, mean of heads": layers[0][0].mean(0), "layer 2, mean of heads": layers[1][0].mean(0),
    "rollout": rolled[0],
}.items()):  # fmt: skip
    draw_attention(figure.add_subplot(grid[0, column]), weights, sentence, name)
next_one = int(reader(tokens).data[0, -1].argmax())
counts = {
    "attention: rollout, of the last position": rolled[0, -1],
    "integrated gradients": explain.integrated_gradients(reader, tokens)[0],
    "occlusion": explain.occlude(reader, tokens)[0],
}
for row, (name, values) in enumerate(counts.items(), 1):
    says = f"{name}, for “{text.decode([next_one])}” to come next".replace("\n", "↵")
    draw_text_map(figure.add_subplot(grid[row, :]), values, sentence, says)
print(f"picture: {save(figure, 'out/lessons/19_what_does_it_look_at.png')}")

# %% [markdown]
# **Question 6.** A head takes 80 % of what it reads from one position. Does this position count for
# 80 %?
#
# Not by itself. What is read there may be small, and the layers behind may ignore it; and after the
# first layer a position is a mixture of others. Let us compare, over many windows, with what counts
# when it is covered:

# %%
windows = Batches(text, MANY, seed=1)[0].inputs[:, :24]
covered = np.abs(explain.occlude(reader, windows))
layers = explain.attention_maps(reader, windows)
compared = {
    "attention of the last layer": layers[-1].mean(axis=1)[:, -1],
    "rollout": explain.attention_rollout(layers)[:, -1],
    "integrated gradients": np.abs(explain.integrated_gradients(reader, windows, steps=32)),
}
for name, values in compared.items():
    found = [explain.rank_correlation(a, b) for a, b in zip(values, covered, strict=True)]
    print(f"{name:28} rank correlation with occlusion {np.mean(found):.2f} ± {np.std(found):.2f}")

# %% [markdown]
# ## What to take away
#
# - Say which number is explained, and against which baseline. Another choice is another map.
# - A gradient says what a small change does; integrated gradients what made the difference;
#   occlusion what happens without a part. These are three questions.
# - Check completeness, and check with random weights. A map that survives them is about the input.
# - Attention says from where a layer reads, not what counts.
# - Maps find cheats. They do not prove that there are none.
#
# **Try it:**
#
# 1. *SmoothGrad* is the mean gradient over images with a little noise added (arXiv 1706.03825).
#    Write it as a function of `(model, inputs, target)`, and give it to `explain.cascade`. Does it
#    pass the check? How does the correlation change with the noise?
# 2. Use black as the baseline: `integrated_gradients(model, images, baseline=...)` with the
#    smallest value of a pixel. What share of the map do black pixels have then?
#
# <details><summary>Answers</summary>
#
# 1. It does: with all weights random the correlation is 0.02, as that of the gradient (0.03). More
#    noise hardly changes it: 0.01 with a standard deviation of 1.
# 2. None, where they had 47 % with grey: the way from black to black has no length. Half of all
#    pixels are black.
#
# </details>
