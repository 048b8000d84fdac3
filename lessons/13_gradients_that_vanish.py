# %% [markdown]
# # 13. Gradients that vanish, gradients that explode
#
# A network of twenty layers is a product of twenty steps, and so is its backward. If each step
# makes the gradient a little smaller, almost nothing reaches the first layer; if each makes it a
# little larger, far too much does. Here you see both in the numbers, and what is done about them:
# initial values of the right size, normalisation, residual connections, clipping.
#
# About 30 minutes. At the end you know why depth makes gradients vanish or explode, and what each
# of these four remedies does about it.
#
# You need: lessons 1 to 3. Run it with `python lessons/13_gradients_that_vanish.py`.

# %%
import matplotlib.pyplot as plt
import numpy as np

from minidist import nn
from minidist.data import Batches, fashion_mnist
from minidist.optim import SGD, clip_by_global_norm
from minidist.plots import save

DEPTH, WIDTH = 20, 64
training, test = fashion_mnist()
batches = Batches(training, size=128, seed=0)
loss = nn.CrossEntropy()

# %% [markdown]
# ## A deep network, layer by layer
#
# `deep` stacks twenty layers of 64 units. `scale` multiplies the standard deviation of the initial
# weights; 1 stands for $\sqrt{1/64}$: then a linear layer keeps the size of what passes through it,
# on average (Glorot, Bengio, 2010).


# %%
def scaled(scale):
    """An initialiser: normal numbers of standard deviation scale/√inputs."""

    def draw(random, shape):
        return random.standard_normal(shape) * scale / np.sqrt(shape[-1])

    return draw


def layer(scale):
    linear = nn.Linear(WIDTH, WIDTH)
    linear.weight.initialiser = scaled(scale)
    return linear


def deep(activation, scale=1.0, norm=False, residual=False):
    """784 → 64, then DEPTH - 2 blocks of 64 → 64, then 64 → 10."""
    blocks = [nn.Flatten(), nn.Linear(784, WIDTH)]
    for _ in range(DEPTH - 2):
        inside = [nn.LayerNorm(WIDTH)] if norm else []
        inside += [layer(scale), activation()]
        blocks.append(nn.Residual(nn.Sequential(*inside)) if residual else nn.Sequential(*inside))
    return nn.Sequential(*blocks, nn.Linear(WIDTH, 10))


def gradient_norms(model):
    """The norm of the gradient of each layer's weights, from the first layer to the last."""
    batch = batches[0]
    model.zero_grad()
    loss(model(batch.inputs), batch.targets).backward()
    return [
        float(np.linalg.norm(parameter.grad))
        for name, parameter in model.named_parameters().items()
        if parameter.grad.ndim == 2
    ]


# %% [markdown]
# **Question 1.** The sigmoid's slope is at most 1/4. What does a factor of 1/4 in each of 18 blocks
# make of a gradient? And which way does it go with ReLU and weights twice as large?

# %%
norms = {}


def compare(networks):
    print(f"{'':32} first layer    last layer     first/last")
    for name, model in networks.items():
        found = norms[name] = gradient_norms(model.init(0))
        print(f"{name:32} {found[0]:11.1e}   {found[-1]:11.1e}   {found[0] / found[-1]:12.1e}")


compare({
    "sigmoid": deep(nn.Sigmoid),
    "tanh, weights half as large": deep(nn.Tanh, 0.5),
    "tanh": deep(nn.Tanh),
    "relu": deep(nn.ReLU),
    "relu, weights √2 times as large": deep(nn.ReLU, np.sqrt(2)),
    "relu, weights twice as large": deep(nn.ReLU, 2.0),
})  # fmt: skip

# %% [markdown]
# The sigmoid's gradient shrinks in every layer: $4^{-18}$ is about $10^{-11}$. Tanh has the slope
# 1 at 0, so there the weights decide: half as large, and little is left. A ReLU lets half of the
# numbers through, so its weights must be $\sqrt 2$ times as large to keep the size (He et al.,
# arXiv 1502.01852, section 2.2); twice as large, and the numbers grow from layer to layer in the
# forward already: all gradients are in the thousands.
#
# **Question 2.** Two remedies do not need the right factor. A *residual* block computes
# $x + f(x)$ in place of $f(x)$ (He et al., arXiv 1512.03385). *Normalisation* gives every layer
# inputs of the same size (Ba et al., arXiv 1607.06450). Take tanh with weights half as large, where
# the first layer had a 4000th of the last one's gradient. What do the two make of that?

# %%
compare({
    "tanh, half, normalised": deep(nn.Tanh, 0.5, norm=True),
    "tanh, half, residual": deep(nn.Tanh, 0.5, residual=True),
    "tanh, half, both": deep(nn.Tanh, 0.5, norm=True, residual=True),
})  # fmt: skip

# %% [markdown]
# With either of them the first layer's gradient is about three times the last one's. The backward
# of a residual block has a path through $x$ on which nothing is multiplied.

# %%
figure, axes = plt.subplots(figsize=(8, 4.5))
for name, found in norms.items():
    axes.semilogy(range(1, DEPTH + 1), found, marker=".", label=name)
axes.set_xlabel("layer")
axes.set_ylabel("norm of the gradient of its weights")
axes.set_xticks(range(1, DEPTH + 1, 2))
axes.legend(fontsize=8, ncols=2)
print("picture:", save(figure, "out/lessons/13_gradient_norms.png"))

# %% [markdown]
# ## What it does to training
#
# **Question 3.** Which of these learn anything in 150 steps at one rate? Does the one with an
# exploding gradient learn nothing, or worse?


# %%
def train(model, rate=0.05, steps=150, clip=None):
    """The loss after each step."""
    model.init(0)
    optimizer, curve = SGD(rate, momentum=0.9), []
    for step in range(steps):
        batch = batches[step]
        model.zero_grad()
        value = loss(model(batch.inputs), batch.targets)
        value.backward()
        if clip is not None:
            clip_by_global_norm(model.flat.grad, clip)
        optimizer.step(model.flat.data, model.flat.grad)
        curve.append(min(value.item(), 10.0) if np.isfinite(value.item()) else 10.0)
    return curve


with np.errstate(all="ignore"):  # some of these overflow: that is the point
    curves = {
        "tanh, weights half as large": train(deep(nn.Tanh, 0.5)),
        "the same, normalised and residual": train(deep(nn.Tanh, 0.5, norm=True, residual=True)),
        "relu, weights √2 times as large": train(deep(nn.ReLU, np.sqrt(2))),
        "relu, weights twice as large": train(deep(nn.ReLU, 2.0)),
        "the same, clipped to norm 1": train(deep(nn.ReLU, 2.0), clip=1.0),
    }
for name, curve in curves.items():
    print(f"{name:34} loss {curve[0]:6.3f} → {np.mean(curve[-10:]):6.3f}")

# %% [markdown]
# A loss of $\ln 10 = 2.303$ is that of guessing. With small weights the tanh network stays there:
# hardly any gradient reaches its first layers. The same weights, normalised and with residual
# connections, learn best of all. With weights of the right size, ReLU learns little in so few
# steps: a good start is not everything. With exploding gradients the first step goes so far that
# nothing useful is left (losses are cut off at 10 here). Clipping scales a whole gradient down to a
# largest norm: it keeps the direction and makes the step harmless, and then even this network
# learns.

# %%
figure, axes = plt.subplots(figsize=(8, 4))
for name, curve in curves.items():
    axes.plot(curve, label=name)
axes.axhline(np.log(10), color="grey", linewidth=0.8, linestyle="--")
axes.set_xlabel("step")
axes.set_ylabel("loss (cut off at 10)")
axes.legend(fontsize=8)
print("picture:", save(figure, "out/lessons/13_training.png"))

# %% [markdown]
# ## What to take away
#
# 1. A backward is a product over the layers: factors below 1 make it vanish, factors above 1 make
#    it explode, exponentially in the depth.
# 2. Initial weights of the right size keep the factors near 1 at the start; what is right depends
#    on the activation.
# 3. Residual connections and normalisation keep them near 1 throughout. That is why every
#    transformer has both.
# 4. Clipping limits the damage of a large gradient. In parallel training it needs the norm of the
#    *whole* gradient, so it costs a sum over the ranks: see lesson 7.
#
# **Try it:**
#
# 1. How deep can `deep(nn.Tanh, 0.5)` get before the first layer's gradient is a thousandth of the
#    last one's? With `residual=True`? And `deep(nn.Tanh)`, with weights of the right size? (`DEPTH`
#    is the number of layers.)
# 2. Put the normalisation behind the activation instead of in front of the linear layer. What
#    changes in the gradients?
#
# <details><summary>Answers</summary>
#
# 1. 17 layers: with 18 it is 0.0008 of the last one's. With residuals it does not vanish: with 160
#    layers it is 9 times as large. With weights of the right size it takes between 80 layers (0.4)
#    and 160 (0.002) or more.
# 2. Nothing that matters: first by last is 3.4 in place of 3.3. Every layer still gets inputs of
#    the same size.
#
# </details>
