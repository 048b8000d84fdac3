# %% [markdown]
# # 18. Private
#
# Some data must not leave the place where it is: photographs, patients, what people type. Data
# parallelism seems to be made for that: each rank keeps its samples and sends only gradients. Is
# that private?
#
# About 45 minutes. At the end you know how an image is read out of a gradient, how clipping and
# noise prevent it, and what the promise means that is called *differential privacy*.
#
# You need: lesson 7. `LESSON=long python lessons/18_private.py` trains longer.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np

from minidist import LocalWorld, launch
from minidist.comm import first_process, launched_size, print_once
from minidist.data import fashion_mnist
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import SGD
from minidist.parallel import DataParallel, Serial
from minidist.plots import save
from minidist.plots.private import draw_accuracy_against_epsilon, draw_images
from minidist.privacy import (
    DPSGD,
    PoissonBatches,
    accuracy_against_epsilon,
    best_psnr,
    epsilon_of,
    invert_each,
    invert_linear,
    per_sample_gradients,
    psnr,
    search,
)

LENGTH = os.environ.get("LESSON", "short")
STEPS, SEEDS, SEARCH = {
    "quick": (30, 1, 60), "short": (400, 1, 400), "long": (1200, 3, 400),
}[LENGTH]  # fmt: skip
training, _ = fashion_mnist()
NOISE, DELTA, RATE = 1.2, 1e-5, 0.0256  # RATE: the chance of an image to be in a batch

# %% [markdown]
# ## What a gradient tells
#
# A rank trains an MLP on one image and sends the change of the parameters, nothing else.
#
# **Question 1.** The first layer computes $y = xW + b$. With $\delta$ for the gradient of $y$, what
# are the gradients of $W$ and of $b$? Can you get $x$ out of them?


# %%
def sent(indices, make=Serial, **options):
    """What a step of plain SGD changes: the gradient, as whoever gets it sees it."""

    def run(comm):
        method = make(mlp(), CrossEntropy(), SGD(1.0), comm, 0, **options)
        before = method.parameters()
        method.step(training.batch(indices))
        return {name: before[name] - after for name, after in method.parameters().items()}

    return launch(run, 1, LocalWorld())[0]


images = [training.batch([k]).inputs.reshape(-1) for k in range(10)]
span = 1 / 0.353  # from white to black, as fashion_mnist scales its pixels
gradients = [sent([k]) for k in range(10)]
stolen = [invert_linear(g["1.weight"], g["1.bias"]) for g in gradients]
alike = [psnr(image, one, span) for image, one in zip(images, stolen, strict=True)]
print_once(f"one image a step: {sum(db > 40 for db in alike)} of 10 recovered, "
      f"the worst with {min(alike):.0f} dB")  # fmt: skip

# %% [markdown]
# The gradient of $W$ is $x \otimes \delta$ (each $x_i$ times each $\delta_j$) and that of $b$ is
# $\delta$. Divide one by the other: there is the image. Decibels (dB) say how alike two images are:
# from 20 on one recognises an image, from 40 on the eye finds no difference. Neither the loss nor
# training matters; any first layer with a bias gives its input away (Phong et al. 2018).
#
# **Question 2.** Does a larger batch help? The gradients of its images are added up.


# %%
def recovered(size):
    """The best attempt at each image of one batch: every output of the layer has seen something."""
    gradient = sent(np.arange(size))
    attempts = invert_each(gradient["1.weight"], gradient["1.bias"])
    whole = [training.batch([k]).inputs.reshape(-1) for k in range(size)]
    found = [max(attempts, key=lambda one: psnr(image, one, span)) for image in whole[:10]]
    return found, np.mean([best_psnr(image, attempts, span) > 20 for image in whole])


shown = {"the images": images, "from one": stolen}
for size in (4, 16, 64, 256):
    found, share = recovered(size)
    print_once(f"{size:3} images a step: {share:6.1%} recognised (20 dB)")
    if size in (16, 256):
        shown[f"from {size}"] = found

# %% [markdown]
# Somewhat. An output $j$ that is active for several images sees a mixture of them. But a ReLU that
# only *one* image of the batch switches on still sees this image alone, and in a batch of 16 there
# are such outputs for many. And an attacker with time to compute may *search*: start with random
# images, and change them until their gradient is the one that was sent (Zhu et al. 2019, Geiping et
# al. 2020). The code is in `privacy/matching.py`.

# %%
state = mlp().init(0).state()
layers = [(state[f"{k}.weight"], state[f"{k}.bias"]) for k in (1, 3, 5, 7)]
classes = np.eye(10, dtype=np.float32)[training.batch(np.arange(16)).targets]
found = search(list(sent(np.arange(16)).values()), classes, layers, -0.81, 2.03, steps=SEARCH)
alike = [best_psnr(training.batch([k]).inputs.reshape(-1), found, span) for k in range(16)]
print_once(f"searched for: {np.mean(np.array(alike) > 20):.0%} of 16 images recognised")
shown["from 16, searched"] = [max(found, key=lambda one: psnr(image, one, span))
                              for image in images]  # fmt: skip

# %% [markdown]
# Larger batches make the attack more work. They promise nothing.
#
# ## Clip, and add noise
#
# A promise needs two steps (Abadi et al. 2016). First, no image may change the sum of the gradients
# by more than $C$: each image's gradient $g_i$ is scaled down to the norm $C$ if it is longer. Then
# noise that is large beside $C$ hides whether any one image was there:
#
# $$ g = \frac1B (\sum_i \frac{g_i}{\max(1, \|g_i\|/C)} + \mathcal{N}(0, \sigma^2 C^2)) $$
#
# Here $B$ is the size of a batch, and $\sigma$ is what the code calls `noise`.
#
# **Question 3.** Why clip each gradient, and not their sum, which would be much cheaper?

# %%
model = mlp().init(0)
each = per_sample_gradients(model, CrossEntropy(), training.batch(np.arange(256)))
norms = np.sqrt(sum((one.reshape(256, -1) ** 2).sum(axis=1) for one in each.values()))
print_once(f"norms of 256 gradients: from {norms.min():.2f} to {norms.max():.2f}")

# %% [markdown]
# With the sum clipped, one image with a huge gradient could still push all others aside: the sum
# with it and without it would be very different. So each image needs a gradient of its own, and a
# backward computes sums. `privacy/per_sample.py` gets them from *one* backward: a linear layer's
# gradient of an image is the outer product of its input and its $\delta$, and both are there for
# every image anyway.

# %%
blurred = []
for k in range(10):
    g = sent([k], DPSGD, noise=NOISE)
    blurred.append(invert_linear(g["1.weight"], g["1.bias"]))
shown[f"noise {NOISE:g}"] = blurred
alike = [psnr(image, one, span) for image, one in zip(images, blurred, strict=True)]
nothing = [psnr(image, np.zeros(784), span) for image in images]
print_once(f"with noise: at best {max(alike):.1f} dB; a grey square has {max(nothing):.1f} dB")

figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
draw_images(axes, {name: [one.reshape(28, 28) for one in row] for name, row in shown.items()},
            -0.81, 2.02)  # fmt: skip
axes.set_title("What can be read out of a gradient")
if first_process():
    print("picture:", save(figure, "out/lessons/18_attack.png"))

# %% [markdown]
# **Question 4.** Four ranks share a batch. Each could add noise to its own part of the sum, or all
# could add one noise to the whole. How much more noise is the first? When is it worth that?
#
# `DPSGD` adds it once, after the all-reduce. All ranks draw the *same* numbers, keyed by seed and
# step, so that the replicas stay equal:


# %%
def train(comm, kind=DPSGD):
    """The first layer's weights after five steps, and the bytes sent."""
    options = {"noise": NOISE, "rate": RATE} if kind is DPSGD else {}
    method = kind(mlp((784, 64, 10)), CrossEntropy(), SGD(0.5), comm, **options)
    batches = PoissonBatches(training, rate=RATE, seed=0)
    before = comm.trace.sent.nbytes
    for step in range(5):
        method.step(batches[step])
    return method.parameters()["1.weight"], comm.trace.sent.nbytes - before


one, four = (launch(train, ranks, LocalWorld())[0][0] for ranks in (1, 4))
print_once(f"weights on 4 ranks, off by {np.abs(four - one).max():.0e} from one rank")

# %% [markdown]
# With four noises of the same size the sum has four times the variance, twice the noise. That is
# the price if the ranks do not trust each other, or whoever adds up.
#
# ## On real ranks
#
# So far every rank was simulated. The next lines run on the ranks that there are: four simulated
# ones under plain `python`, and real processes that send real messages under
#
#     minidist run -n 2 lessons/18_private.py
#
# **Question 5.** How many bytes more than plain data parallel training does a rank send?

# %%
found = launch(train, 4)
plain = launch(lambda comm: train(comm, DataParallel), 4)
kind = "real" if launched_size() else "simulated"
gap = np.abs(found[0][0] - one).max()
print_once(f"{len(found)} {kind} ranks: weights off by {gap:.0e} from one rank; rank 0 sent "
           f"{found[0][1]:,} bytes, and without privacy {plain[0][1]:,}")  # fmt: skip

# %% [markdown]
# None: each rank clips the gradients of its own images before it adds them up, and draws the noise
# itself.
#
# ## Adding up
#
# The promise is called *(ε, δ)-differential privacy*: with any one image more or less, no result
# becomes more than $e^\varepsilon$ times likelier, but for a chance of $\delta$. One step is cheap.
#
# **Question 6.** Do 1000 steps cost 1000 times as much?

# %%
for steps in (1, 10, 100, 1000):
    naive = steps * epsilon_of(RATE, NOISE, 1, DELTA / steps)
    print_once(f"{steps:4} steps: each step's ε added up {naive:7.2f}, "
          f"by Rényi's divergence {epsilon_of(RATE, NOISE, steps, DELTA):5.2f}")  # fmt: skip

# %% [markdown]
# Much less. Noise of independent steps averages out, and nobody knows in which few of them an image
# was drawn. The *accountant*, which counts what has been spent, uses another measure of how
# different two results are: *Rényi divergences* of independent steps simply add. At the end it
# converts their sum to $(\varepsilon, \delta)$. The formula holds if each image is drawn by itself:
# that is what `PoissonBatches` does. docs/private.md compares our ε with those of papers.
#
# ## What it costs
#
# **Question 7.** Three levels of noise, one learning rate. Which is the most accurate at ε = 1?

# %%
noises = (0.7, 1.2, 3.0)
curves = accuracy_against_epsilon(noises, STEPS, SEEDS, points=10)
plain = accuracy_against_epsilon((0.0,), STEPS, 1, points=2)[0.0].accuracy[-1].mean()
for noise, curve in curves.items():
    print_once(f"noise {noise}: ε = {curve.epsilon[-1]:5.2f} after {STEPS} steps, "
          f"accuracy {curve.accuracy[-1].mean():.1%}")  # fmt: skip
print_once(f"without noise: {plain:.1%}")
figure, axes = plt.subplots(figsize=(6.5, 4), layout="constrained")
draw_accuracy_against_epsilon(
    axes, {noise: (curve.epsilon, curve.accuracy) for noise, curve in curves.items()}, plain
)
axes.set_title(f"Fashion-MNIST, MLP, δ = {DELTA:g}")
if first_process():
    print("picture:", save(figure, "out/lessons/18_private.png"))

# %% [markdown]
# Little noise learns fast and spends fast: at a small ε, much noise and many steps win.
# docs/private.md has the long run. Small models lose less: each of their weights gets noise.
#
# ## What is not promised
#
# - The *loss* that a step prints is computed without noise. Do not publish it.
# - Who knows the *seed* knows the noise and subtracts it. It has to be secret, and Philox is no
#   cryptographic generator; even the last digits of floating-point noise can tell (Mironov 2012).
# - Trying out ten learning rates on the private data spends ten times.
# - One *image* is hidden, not a person with a hundred images: see [lesson 24](24_federated.py).
#
# ## What to take away
#
# 1. A gradient is the data in another form: for one sample, a division away.
# 2. Privacy needs a bound on what one sample can do (the clip) and noise beside it, once.
# 3. Each step spends a part of ε. Rényi's divergence adds the parts up, and hardly too much.
# 4. Say *whose* presence is hidden, from *whom*, and what is published.
#
# **Try it:**
#
# 1. Find the noise at which the attack begins to recognise images (20 dB). Is it near the noise
#    that training uses?
# 2. `DPSGD(..., rate=0.0256, epsilon=1.0)` refuses to go on past its budget. How many steps does it
#    make with noise 1.2, and with noise 3? Which ends more accurate?
# 3. Use `sample_clip=0.1` in place of 1, with a learning rate ten times as large. What changes, and
#    why so little?
#
# <details><summary>Answers</summary>
#
# 1. No: with noise 0.01 no image is recognised, with 0.001 three of ten, with 0.0003 all. Training
#    uses a thousand times as much.
# 2. 14 steps, which reach 64 %, and 754, which reach 80 %.
# 3. Little: 75.2 % in place of 75.9 % after 100 steps with noise 1.2. At first all gradients are
#    longer than 1 (the shortest has a norm of 1.6), so all are clipped either way. Clipped
#    gradients and noise both become a tenth, and the rate makes up for it.
#
# </details>
