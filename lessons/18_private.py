# %% [markdown]
# # 18. Private
#
# Some data must not leave the place where it is: photographs, patients, what people type. Data
# parallelism seems to be made for that. Each rank keeps its samples and sends gradients alone. Is
# that private? We begin with an attack, see what stops it, and count what each step gives away.
#
# You need: lesson 7. `LESSON=long python lessons/18_private.py` trains longer.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np

from minidist import LocalWorld, launch
from minidist.data import fashion_mnist
from minidist.data.clients import by_dirichlet
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import SGD
from minidist.parallel import Serial
from minidist.plots import save
from minidist.plots.private import draw_accuracy_against_epsilon, draw_images
from minidist.privacy import (
    DPSGD,
    FederatedAveraging,
    FedProx,
    FixedPoint,
    PoissonBatches,
    PrivateFederatedAveraging,
    SecureClient,
    SecureServer,
    accuracy_against_epsilon,
    best_psnr,
    epsilon_of,
    invert_each,
    invert_linear,
    noise_for,
    per_sample_gradients,
    psnr,
    search,
)

LENGTH = os.environ.get("LESSON", "short")
STEPS, SEEDS, SEARCH, ROUNDS = {
    "quick": (30, 1, 60, 1), "short": (400, 1, 400, 6), "long": (1200, 3, 400, 20),
}[LENGTH]  # fmt: skip
training, test = fashion_mnist()
NOISE, DELTA = 1.2, 1e-5

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
print(f"one image a step: {sum(db > 40 for db in alike)} of 10 recovered, "
      f"the worst with {min(alike):.0f} dB")  # fmt: skip

# %% [markdown]
# The gradient of $W$ is $x \otimes \delta$ and that of $b$ is $\delta$. Divide one by the other:
# there is the image. From 40 dB on, the eye finds no difference. Neither the loss nor training
# matters; any first layer with a bias gives its input away (Phong et al. 2018).
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
    print(f"{size:3} images a step: {share:6.1%} recognised (20 dB)")
    if size in (16, 256):
        shown[f"from {size}"] = found

# %% [markdown]
# Somewhat. An output $j$ that is active for several images sees a mixture of them. But a ReLU that
# only *one* image of the batch switches on still sees this image alone, and in a batch of 16 there
# are such outputs for many. And who can compute may *search*: start with random images, and change
# them until their gradient is the one that was sent (Zhu et al. 2019, Geiping et al. 2020). For
# that, the backward has to be derived once more: `privacy/matching.py` writes it out as a forward.

# %%
state = mlp().init(0).state()
layers = [(state[f"{k}.weight"], state[f"{k}.bias"]) for k in (1, 3, 5, 7)]
classes = np.eye(10, dtype=np.float32)[training.batch(np.arange(16)).targets]
found = search(list(sent(np.arange(16)).values()), classes, layers, -0.81, 2.03, steps=SEARCH)
alike = [best_psnr(training.batch([k]).inputs.reshape(-1), found, span) for k in range(16)]
print(f"searched for: {np.mean(np.array(alike) > 20):.0%} of 16 images recognised")
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
# **Question 3.** Why clip each gradient, and not their sum, which would be much cheaper?

# %%
model = mlp().init(0)
each = per_sample_gradients(model, CrossEntropy(), training.batch(np.arange(256)))
norms = np.sqrt(sum((one.reshape(256, -1) ** 2).sum(axis=1) for one in each.values()))
print(f"norms of 256 gradients: from {norms.min():.2f} to {norms.max():.2f}")

# %% [markdown]
# With the sum clipped, one image with a huge gradient could still push all others aside: the sum
# with it and without it would be very different. So each image needs a gradient of its own, and a
# backward computes sums. `privacy/per_sample.py` gets them from *one* backward: a linear layer's
# gradient of an image is the outer product of its input and its $\delta$, which the backward has
# for every image anyway. For the norm, not even the product is needed:
# $\|x \otimes \delta\| = \|x\| \, \|\delta\|$.

# %%
blurred = []
for k in range(10):
    g = sent([k], DPSGD, noise=NOISE)
    blurred.append(invert_linear(g["1.weight"], g["1.bias"]))
shown[f"noise {NOISE:g}"] = blurred
alike = [psnr(image, one, span) for image, one in zip(images, blurred, strict=True)]
nothing = [psnr(image, np.zeros(784), span) for image in images]
print(f"with noise: at best {max(alike):.1f} dB; a grey square has {max(nothing):.1f} dB")

figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
draw_images(axes, {name: [one.reshape(28, 28) for one in row] for name, row in shown.items()},
            -0.81, 2.02)  # fmt: skip
axes.set_title("What can be read out of a gradient")
print("picture:", save(figure, "out/lessons/18_attack.png"))

# %% [markdown]
# **Question 4.** Four ranks share a batch. Each could add noise to its own part of the sum, or all
# could add one noise to the whole. How much more noise is the first? When is it worth that?
#
# `DPSGD` adds it once, after the all-reduce. All ranks draw the *same* numbers, keyed by seed and
# step, so that the replicas stay equal:


# %%
def train(comm):
    batches = PoissonBatches(training, rate=0.0256, seed=0)
    method = DPSGD(mlp((784, 64, 10)), CrossEntropy(), SGD(0.5), comm, noise=NOISE, rate=0.0256)
    for step in range(5):
        method.step(batches[step])
    return method.parameters()["1.weight"], method.epsilon_spent


one, two, four = (launch(train, ranks, LocalWorld())[0] for ranks in (1, 2, 4))
gap = max(np.abs(one[0] - many[0]).max() for many in (two, four))
print(f"largest difference of a weight between 1, 2 and 4 ranks: {gap:.0e}")

# %% [markdown]
# With four noises of the same size the sum has four times the variance, twice the noise. That is
# the price if the ranks do not trust each other, or whoever adds up.
#
# ## Adding up
#
# The promise: with any one image more or less, no result becomes more than $e^\varepsilon$ times
# likelier, but for a chance of $\delta$. One step is cheap. **Question 5.** Do 1000 steps cost 1000
# times as much?

# %%
rate = 0.0256
for steps in (1, 10, 100, 1000):
    naive = steps * epsilon_of(rate, NOISE, 1, DELTA / steps)
    print(f"{steps:4} steps: each step's ε added up {naive:7.2f}, "
          f"by Rényi's divergence {epsilon_of(rate, NOISE, steps, DELTA):5.2f}")  # fmt: skip

# %% [markdown]
# Much less. Noise of independent steps averages out, and an image that is drawn with probability
# 0.0256 is in few of them, nobody knows which. The accountant adds up *Rényi divergences*, which
# simply add, and converts to $(\varepsilon, \delta)$ at the end. Two ways to convert, and why our
# numbers are not those of older papers:

# %%
mnist = 256 / 60_000
for name, published, q, noise, steps in (
    ("Abadi et al. 2016, figure 2", 1.26, 0.01, 4.0, 10_000),
    ("TensorFlow Privacy, 60 epochs", 2.92, mnist, 1.12, 60 * (60_000 // 256)),
    ("TensorFlow Privacy, 30 epochs", 9.74, mnist, 0.6, 30 * (60_000 // 256)),
    ("TensorFlow Privacy, 10 epochs", 1.20, mnist, 1.2, 10 * (60_000 // 256)),
):
    old, new = (epsilon_of(q, noise, steps, DELTA, how) for how in ("mironov", "canonne"))
    print(f"{name:30} published {published:.2f}; their conversion {old:.2f}, ours {new:.2f}")

# %% [markdown]
# They converted by Mironov's proposition 3 of 2017. Canonne, Kamath and Steinke showed in 2020 that
# the same divergence promises more; nothing about the training has changed. (And they shuffled,
# where the formula wants each image drawn by itself: `PoissonBatches`.) In reverse: the noise for a
# promise.

# %%
for epsilon in (0.5, 2.0, 8.0):
    print(f"ε = {epsilon}: noise {noise_for(epsilon, DELTA, rate, 1000):.2f} for 1000 steps")

# %% [markdown]
# ## What it costs
#
# **Question 6.** Three levels of noise, one learning rate. Which is the most accurate at ε = 1?

# %%
noises = (0.7, 1.2, 3.0)
curves = accuracy_against_epsilon(noises, STEPS, SEEDS, points=10)
plain = accuracy_against_epsilon((0.0,), STEPS, 1, points=2)[0.0].accuracy[-1].mean()
for noise, curve in curves.items():
    print(f"noise {noise}: ε = {curve.epsilon[-1]:5.2f} after {STEPS} steps, "
          f"accuracy {curve.accuracy[-1].mean():.1%}")  # fmt: skip
print(f"without noise: {plain:.1%}")
figure, axes = plt.subplots(figsize=(6.5, 4), layout="constrained")
draw_accuracy_against_epsilon(
    axes, {noise: (curve.epsilon, curve.accuracy) for noise, curve in curves.items()}, plain
)
axes.set_title(f"Fashion-MNIST, MLP, δ = {DELTA:g}")
print("picture:", save(figure, "out/lessons/18_private.png"))

# %% [markdown]
# Little noise learns fast and spends fast: at a small ε, much noise and many steps win.
# docs/private.md has the long run. Small models lose less: each of their weights gets noise.
#
# ## Whose data?
#
# So far each *image* is hidden from whoever sees the model. In the field the data is often spread
# over *clients*, such as telephones, and the question is whom a client has to trust.
# `lessons/scripts/federated.py` trains as follows under `mpirun`.
#
# A step of SGD is a small thing to send a gradient for. *Federated averaging* (McMahan et al. 2017)
# sends less often. In each round the server sends the model to some clients. Each trains it on its
# own data for a while and sends back what has changed; the server averages the changes, weighted by
# how many samples each has.
#
# **Question 7.** Ten clients have 10,000 images. In one case each has some of all clothes, in the
# other mostly boots, or mostly shirts. Where does averaging work worse, and why?

# %%
CLIENTS = 10
everything = training.batch(np.arange(len(training)))


def federated(kind, alpha, **options):
    """Accuracy after each round, of clients whose labels are skewed by alpha."""
    clients = by_dirichlet(training, CLIENTS, alpha, seed=0)

    def main(comm):
        method = kind(
            *(mlp((784, 64, 10)), CrossEntropy(), SGD(0.05), comm),
            clients=clients, fraction=0.5, epochs=2, local_batch=32, **options,
        )  # fmt: skip
        return [(method.step(everything), method.evaluate(test)[1])[1] for _ in range(ROUNDS)]

    return launch(main, 2, LocalWorld())[0]


curves = {
    "nearly even, α = 100": federated(FederatedAveraging, 100.0),
    "skewed, α = 0.3": federated(FederatedAveraging, 0.3),
    "skewed, FedProx with μ = 0.1": federated(FedProx, 0.3, mu=0.1),
}
for name, reached in curves.items():
    print(f"{name:30} {reached[-1]:.1%} after {ROUNDS} rounds")

# %% [markdown]
# Clients that see few classes pull the model towards these, and forget the others; the mean of such
# models is worse than that of clients who see everything. FedProx (Li et al. 2020) ties each client
# to the model that it was given, by a spring of strength $\mu$. It helps less than one hopes:
# [docs/federated.md](../docs/federated.md) has the accuracy against skew, with its spread.
#
# ## What does the server see?
#
# The data stay, but a change tells of the data: above an image was recovered from a gradient. The
# server needs only the *sum* of the changes. **Question 8.** Three people want to know the sum of
# their salaries, and nobody may learn a single one. How?
#
# Each pair agrees on a random number; one adds it, the other subtracts it. What each says is then
# random, and in the sum all the numbers cancel (Bonawitz et al. 2017). Here each client has 20,000
# numbers to send, and everything is modulo $2^{32}$:

# %%
try:
    clients = [SecureClient(number) for number in range(4)]
except ImportError as error:  # pip install "minidist[privacy]"
    print(f"left out: {error}")
    sent = own = None
else:
    server, fixed = SecureServer(), FixedPoint(limit=1.0)
    publics = {client.number: client.public for client in clients}
    server.begin(0, publics, length=20_000)
    changes = np.random.default_rng(0).normal(0, 0.05, (4, 20_000))
    for client, change in zip(clients, changes, strict=True):
        own = fixed.encode(change)
        sent = client.message(own, 0, publics, server.public)[10:]
        server.receive(client.message(own, 0, publics, server.public))
    gap = np.abs(fixed.decode(server.total()) - changes.sum(0)).max()
    print(f"the sum is off by {gap:.0e}: rounding to {fixed.bits} bits, and nothing else")

# %% [markdown]
# **Question 9.** One of the four loses its connection after the keys were agreed on. What does the
# server have?
#
# Noise. The lost client's numbers do not cancel, so the round ends with an error, and the others
# begin again. Against what does this *not* help? A server that hands out its own keys in other
# people's names; clients that work together with the server; and what the sum itself tells. For the
# last one there is the noise of this lesson's beginning, here for whole clients: limit each
# client's change, and add noise once, to the sum (McMahan et al. 2018). A "sample" of the
# accountant is then a client:

# %%
private = federated(PrivateFederatedAveraging, 100.0, client_clip=1.0, noise=0.5)
epsilon = epsilon_of(0.5, 0.5, ROUNDS, 1e-2)
print(f"{CLIENTS} clients, noise 0.5: {private[-1]:.1%}, with ε = {epsilon:.0f} at δ = 0.01")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
for name, reached in (curves | {"even, private: noise 0.5": private}).items():
    left.plot(range(1, ROUNDS + 1), 100 * np.array(reached), marker=".", label=name)
left.set_xlabel("round")
left.set_ylabel("accuracy on test images, %")
left.legend(frameon=False, fontsize=8)
if sent is not None:
    for values, name in ((own, "what a client has"), (sent, "what it sends")):
        right.hist(values.astype(np.float64), 64, range=(0, 2**32), histtype="step", label=name)
    right.set_yscale("log")
    right.set_xlabel("integers modulo 2³²")
    right.legend(frameon=False, fontsize=8)
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
print(f"picture: {save(figure, 'out/lessons/18_federated.png')}")

# %% [markdown]
# ε promises next to nothing, and the accuracy is bad: with ten clients, each is a tenth of the sum,
# and no noise hides a tenth and leaves the rest. Privacy for clients takes thousands of them. More
# clients, each drawn less often, make ε smaller *and* the noise on the mean smaller:

# %%
for count, fraction, noise in ((10, 0.5, 0.5), (1_000, 0.05, 1.0), (100_000, 0.01, 1.0)):
    spent = epsilon_of(fraction, noise, ROUNDS, 1 / count**1.1)
    sigma = noise / (fraction * count)
    print(f"{count:7,} clients, noise {noise}: ε = {spent:6.2f}, σ = {sigma:.5f} S on the mean")

# %% [markdown]
# ## What is not promised
#
# - The *loss* that a step prints is computed without noise. Do not publish it.
# - Who knows the *seed* knows the noise and subtracts it. It has to be secret, and Philox is no
#   cryptographic generator; even the last digits of floating-point noise can tell (Mironov 2012).
# - Trying out ten learning rates on the private data spends ten times.
# - One *image* is hidden, not a person with a hundred images.
#
# ## What to take away
#
# 1. A gradient is the data in another form: for one sample, a division away.
# 2. Privacy needs a bound on what one sample can do (the clip) and noise beside it, once.
# 3. ε is the sum of all steps. Rényi's divergence adds up tightly.
# 4. Federated averaging moves the training to the data. Skewed data cost accuracy, and what is sent
#    still tells of the data; secure sums hide each client's part of it, noise what the sum tells.
# 5. Say *whose* presence is hidden, from *whom*, and what is published.
#
# **Try it:** 1. Find the noise at which the attack begins to recognise images (20 dB): is it near
# the noise that training uses? 2. `DPSGD(..., rate=0.0256, epsilon=1.0)` refuses to go on past its
# budget. How many steps does it make with noise 1.2, and with noise 3? Which ends more accurate?
# 3. Clip at 0.1 in place of 1, with a learning rate ten times as large. What changes, and why so
# little? 4. `SecureFederatedAveraging(..., drops={3})`: what does each rank raise? Give all clients
# one epoch, `local_batch=None` and `fraction=1`, and compare the parameters with `Serial` on the
# whole data: why are they equal?
