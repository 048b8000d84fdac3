# %% [markdown]
# # 3. Optimizers
#
# The gradient points in the direction in which the loss grows. How should we use it to go down?
# Directly against it, or also with past gradients? Here six optimizers minimise the same function
# of two variables, where you can *see* their strengths and weaknesses. Then they train the same
# network.
#
# About 25 minutes. At the end you know why one learning rate does not suit all directions, what
# momentum, RMSprop and Adam do about it, and how much memory each of them needs.
#
# You need: lessons 1 and 2. Run it with `python lessons/03_optimizers.py`.

# %%
import matplotlib.pyplot as plt
import numpy as np

import minidist as md
from minidist import nn, optim
from minidist.data import Batches, fashion_mnist
from minidist.models import mlp
from minidist.optim import schedules
from minidist.plots import save

# %% [markdown]
# ## One number decides: the learning rate
#
# $w \leftarrow w - \text{lr} \cdot g$ is gradient descent. We try it on a bowl that is 20 times as
# steep in one direction as in the other:
#
# $$f(x, y) = \frac{x^2 + 20\,y^2}{2}$$
#
# The gradient is $(x, 20y)$. So a step multiplies x by $1 - \text{lr}$, and y by $1 -
# 20\,\text{lr}$.
#
# **Question 1.** Which rate is the best for x alone? From which rate on does y grow, and not
# shrink?


# %%
def bowl(x, y):
    return (x * x + 20 * y * y) * 0.5


def valley(x, y):
    """Steep walls and a curved, nearly flat floor; lowest at (1, 1). Rosenbrock 1960, milder."""
    bend = y - x * x
    return (x - 1) * (x - 1) + 10 * (bend * bend)


def walk(optimizer, surface, start, steps):
    """The points that an optimizer visits: (steps + 1, 2)."""
    place = np.array(start)
    places = [place.copy()]
    for _ in range(steps):
        x, y = (md.Tensor(number, requires_grad=True) for number in place)
        surface(x, y).backward()
        optimizer.step(place, np.array([x.grad, y.grad]))
        places.append(place.copy())
    return np.array(places)


START, STEPS = (-4.0, 1.0), 40
rates = {"too small": 0.01, "about right": 0.085, "too large": 0.101}
descents = {
    name: walk(optim.GradientDescent(rate), bowl, START, STEPS) for name, rate in rates.items()
}
for name, places in descents.items():
    print(f"rate {rates[name]:5} is {name:11}: f = {bowl(*places[-1]):.4f} after {STEPS} steps")

# %% [markdown]
# For x alone the best rate is 1: it is there in one step. But above $2/20 = 0.1$ the factor of y is
# below −1: each step overshoots by more than it gains. The steep direction limits the rate, and the
# flat one needs many steps. All other optimizers try to solve this problem.
#
# ## Rates that change
#
# Use large steps first, to be fast, and small steps at the end, to converge. In minidist a rate may
# be a *function of the step*; such functions are called schedules. A **warm-up** starts with small
# steps, because the first gradients of a new network change direction quickly.

# %%
plans = {
    "constant": schedules.constant(1.0),
    "step": schedules.step_decay(1.0, every=30, factor=0.4),
    "warm-up, then cosine": schedules.warm_up(10, schedules.cosine(1.0, steps=90)),
}

figure, (*maps, rates_axes) = plt.subplots(1, 4, figsize=(13, 3.1), layout="constrained")
xs, ys = np.meshgrid(np.linspace(-5, 5, 200), np.linspace(-2.4, 2.4, 200))
for axes, (name, places) in zip(maps, descents.items(), strict=True):
    axes.contourf(xs, ys, np.log1p(bowl(xs, ys)), levels=18, cmap="Blues_r")
    axes.plot(*places.T, "o-", color="#d35400", ms=3, lw=1.2, clip_on=True)
    axes.plot(0, 0, "*", color="white", ms=11, mec="black", mew=0.6)
    axes.set(xlim=(-5, 5), ylim=(-2.4, 2.4), xticks=[], yticks=[])
    axes.set_title(f"lr = {rates[name]}: {name}", fontsize=11)
for name, plan in plans.items():
    rates_axes.plot([plan(step) for step in range(100)], label=name, lw=2)
rates_axes.set(xlabel="step", ylim=(0, 1.5), yticks=[0, 0.5, 1])
rates_axes.set_title("Schedules: lr / largest lr", fontsize=11)
rates_axes.legend(frameon=False, fontsize=9, loc="upper right")
rates_axes.spines[["top", "right"]].set_visible(False)
print("picture:", save(figure, "out/lessons/03_learning_rates.png"))

# %% [markdown]
# ## Six ways down
#
# With $g$ the gradient, in order of increasing complexity:
#
# | name | rule | idea |
# |---|---|---|
# | gradient descent | $w \leftarrow w - lr\,g$ | directly against the gradient |
# | momentum | $v \leftarrow \mu v + g;\; w \leftarrow w - lr\,v$ | equal directions add up |
# | Nesterov | the same $v$; $w \leftarrow w - lr\,(g + \mu v)$ | as if $g$ were one step ahead |
# | AdaGrad | $s \leftarrow s+g^2; w \leftarrow w-lr\,g/(\sqrt s+\epsilon)$ | short where steep |
# | RMSprop | $s \leftarrow \rho s + (1-\rho) g^2$, the same step | the same, but forgets |
# | Adam | $m \leftarrow \beta_1 m + (1-\beta_1) g$, RMSprop's step along $m$ | both together |
#
# $\mu$, $\rho$ and $\beta$ are numbers a little below 1. $\epsilon$ is tiny, so that nothing is
# divided by zero. Adam's $m$ and $s$ begin at zero, so at first they are too small. It divides them
# by $1 - \beta^t$ in step $t$, which corrects that. (`SGD(0.05, momentum=0.9)` of other lessons is
# the second row. The S is for *stochastic*: the gradient is that of a random batch.)
#
# Each has its own suitable learning rate; one rate for all would be unfair. All start at the same
# point of the same curved valley: steep walls, and a nearly flat floor to the lowest point.
#
# **Question 2.** Which will be the lowest after 150 steps, and which the highest?

# %%
walkers = {
    "gradient descent": optim.GradientDescent(0.013),
    "momentum": optim.Momentum(0.006, momentum=0.9),
    "Nesterov": optim.Nesterov(0.006, momentum=0.9),
    "AdaGrad": optim.AdaGrad(0.8),
    "RMSprop": optim.RMSprop(0.05, decay_rate=0.9),
    "Adam": optim.Adam(0.2),
}
paths = {name: walk(walker, valley, (-1.6, 2.4), 150) for name, walker in walkers.items()}
for name, path in paths.items():
    print(f"{name:16} f = {valley(*path[-1]):.6f} after 150 steps")

# %% [markdown]
# ## And on a real network
#
# A function of two variables is easy to draw, but a network has many thousands. So each optimizer
# also trains the same network on the same images in the same order, from the same start.
#
# **Question 3.** Do you expect the order of the valley? And how many numbers must each optimizer
# keep for each parameter, from one step to the next?

# %%
train, test = fashion_mnist()
batches = Batches(train, 100)
trainers = {
    "gradient descent": optim.GradientDescent(0.1),
    "momentum": optim.Momentum(0.03),
    "Nesterov": optim.Nesterov(0.03),
    "AdaGrad": optim.AdaGrad(0.01),
    "RMSprop": optim.RMSprop(0.001),
    "Adam": optim.Adam(0.001),
}
cross_entropy, curves = nn.CrossEntropy(), {}
for name, optimizer in trainers.items():
    model = mlp((784, 128, 128, 10)).init(seed=0)
    losses = []
    for step in range(200):
        batch = batches[step]
        model.zero_grad()
        loss = cross_entropy(model(batch.inputs), batch.targets)
        loss.backward()
        optimizer.step(model.flat.data, model.flat.grad)
        losses.append(loss.item())
    curves[name] = np.convolve(losses, np.full(15, 1 / 15), "valid")
    kept = optimizer.state_bytes() / model.flat.data.nbytes
    print(f"{name:16} loss {curves[name][-1]:.3f}, keeps {kept:.0f} numbers for each parameter")

# %% [markdown]
# ## The picture

# %%
shades = ("#7f8c8d", "#2471a3", "#17a589", "#b7950b", "#ca6f1e", "#c0392b")
COLOURS = dict(zip(paths, shades, strict=True))
figure, grid = plt.subplots(2, 4, figsize=(14, 6.2), layout="constrained")
maps = [*grid[0, :3], *grid[1, :3]]
xs, ys = np.meshgrid(np.linspace(-2.1, 2.1, 250), np.linspace(-1.0, 3.4, 250))
for axes, (name, path) in zip(maps, paths.items(), strict=True):
    axes.contourf(xs, ys, np.log(valley(xs, ys) + 0.05), levels=22, cmap="Greys_r")
    axes.plot(*path.T, "-", color=COLOURS[name], lw=1.6)
    axes.plot(*path[::10].T, "o", color=COLOURS[name], ms=4, mec="white", mew=0.5)
    axes.plot(1, 1, "*", color="#f7dc6f", ms=14, mec="black", mew=0.7)
    axes.set(xlim=(-2.1, 2.1), ylim=(-1.0, 3.4), xticks=[], yticks=[])
    axes.set_title(f"{name}: f = {valley(*path[-1]):.1g}", fontsize=11.5, color=COLOURS[name])
for name in paths:
    grid[0, 3].semilogy(valley(*paths[name].T), color=COLOURS[name], lw=1.6)
    grid[1, 3].plot(curves[name], color=COLOURS[name], lw=1.6, label=name)
grid[0, 3].set(xlabel="step", ylim=(1e-5, 30))
grid[0, 3].set_title("the valley: f at each step", fontsize=11.5)
grid[1, 3].set(xlabel="step", ylim=(0.4, 2.0))
grid[1, 3].set_title("a real network: loss", fontsize=11.5)
grid[1, 3].legend(frameon=False, fontsize=9)
for axes in grid[:, 3]:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
print("picture:", save(figure, "out/lessons/03_optimizers.png"))

# %% [markdown]
# There is a dot every ten steps. Gradient descent quickly reaches the floor of the valley; there
# the slope is small, so it becomes slow. Momentum and Nesterov become faster along the floor,
# Nesterov with less overshoot. AdaGrad and RMSprop make steps of about the same size in every
# direction, so the steep walls hardly matter. AdaGrad's steps shrink all the time. RMSprop's do
# not, so it oscillates around the minimum. Adam uses momentum *and* rescales its steps.
#
# On the real network the order is not the same as in the valley: do not choose an optimizer only by
# a drawing.
#
# ## The memory
#
# Momentum keeps one number for each parameter ($v$), Adam two ($m$ and $s$). For a model of a
# billion parameters in float32 Adam's memory is 8 GB on top of 4 GB of parameters and 4 GB of
# gradients. In a later lesson, ZeRO divides this memory among computers. For that, an optimizer
# must step a *slice* of the flat array.
#
# **Question 4.** Two optimizers step one part each. How far is the result from stepping the whole?

# %%
draw = np.random.default_rng(0)
whole, grad = draw.standard_normal(10), draw.standard_normal(10)
parts = whole.copy()
optim.Adam(0.1).step(whole, grad)
optim.Adam(0.1).step(parts[:3], grad[:3])
optim.Adam(0.1).step(parts[3:], grad[3:])
assert (parts == whole).all()
print("two parts, stepped separately, equal the whole to the last bit")

# %% [markdown]
# ## What to take away
#
# 1. The learning rate matters most. If it is too large, training diverges; too small, it is slow.
# 2. Momentum stores the direction of past gradients; AdaGrad and RMSprop store their size; Adam
#    both.
# 3. This state costs memory.
#
# **Try it:**
#
# 1. Find a rate at which gradient descent is lower in the valley than Adam after 150 steps, or show
#    that there is none.
# 2. Give Adam in the valley the schedule `schedules.warm_up(10, schedules.cosine(0.2, 140))`. Is it
#    lower at the end?
# 3. On the network, give gradient descent ten times the rate of Adam, 0.01. Why is it so slow?
#
# <details><summary>Answers</summary>
#
# 1. There is one: at 0.0185 it reaches 0.000002, and Adam 0.000015. But at 0.018 it reaches
#    0.00009, at 0.019 only 0.04, and at 0.02 it diverges: nobody would have found this rate
#    beforehand.
# 2. No: 0.00005 in place of 0.000015. A schedule that ends at 0 also ends the way down.
# 3. Its loss is 1.03 after 200 steps, Adam's 0.49. An element of the gradient is about 0.002 here,
#    so a step changes a parameter by about 0.00002. Adam's steps are about as long as its rate,
#    0.001, however small the gradient is.
#
# </details>
#
# **Marked exercise:** `minidist exercise start adam`. Next: `04_training_for_real.py`.
