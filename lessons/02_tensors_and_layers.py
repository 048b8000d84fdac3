# %% [markdown]
# # 2. Tensors and layers
#
# In lesson 1 every number stored how it was computed. That is right, but slow: an image has
# thousands of numbers. Here a whole **array** stores how it was computed, and one operation on it
# does the work of thousands. Then we put such operations into **layers**, and layers into a network
# that separates two classes which no straight line can separate.
#
# About 25 minutes. At the end you know how gradients pass through broadcasting and through a
# product of matrices, how to write and check an operation of your own, and why all parameters of a
# model are in one array.
#
# You need: lesson 1, and NumPy arrays. Run it with `python lessons/02_tensors_and_layers.py`.

# %%
import matplotlib.pyplot as plt
import numpy as np

import minidist as md
from minidist import nn, ops
from minidist.engine.gradcheck import gradcheck
from minidist.plots import save

# %% [markdown]
# ## A tensor is an array that stores how it was computed
#
# **Question 1.** `x` has two rows of three numbers, and the loss is the sum of their squares. Which
# shape has the gradient of `x`, and what is in it?

# %%
x = md.Tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], requires_grad=True)
loss = (x * x).sum()
loss.backward()
print(f"{loss.item()=}\n{x.grad=}")

# %% [markdown]
# The derivative of x² is 2x, for all six at once. The gradient always has the shape of the tensor:
# one slope for each number.
#
# ## Broadcasting: the gradients of all uses add up
#
# A *batch* is several samples, one in each row. A *bias* of 3 numbers is added to *every row*.
# NumPy repeats it for us; that is called broadcasting.
#
# **Question 2.** Here each number of the bias is used in two rows. What is its gradient? (Remember
# lesson 1: a number that is used twice.)

# %%
bias = md.Tensor([10.0, 20.0, 30.0], requires_grad=True)
(x + bias).sum().backward()
print(f"{bias.grad=}")

# %% [markdown]
# Two uses, so two gradients of 1, which add up.
#
# ## The product of matrices
#
# Nearly all the work of deep learning is `y = x @ w`: each row of `x` is one sample, each column of
# `w` is one neuron. The two gradients are matrix products again.
#
# **Question 3.** `x` is (2, 3), `w` is (3, 4), so `y` and its gradient `grad_y` are (2, 4). The
# gradient of `x` must be (2, 3). Which product of `grad_y` and `w` (or its transpose, `wᵀ`) has
# this shape? And which product of `grad_y` and `x` has the shape of `w`?

# %%
w = md.Tensor(np.ones((3, 4), np.float32), requires_grad=True)
x.grad = None
(x @ w).sum().backward()
grad_y = np.ones((2, 4), np.float32)  # of a sum: each number counts once
assert (x.grad == grad_y @ w.data.T).all()  # (2, 4) @ (4, 3) = (2, 3)
assert (w.grad == x.data.T @ grad_y).all()  # (3, 2) @ (2, 4) = (3, 4)
print(f"{x.grad.shape=}, {w.grad.shape=}")

# %% [markdown]
# The shapes leave one choice each, and it is right: `grad_y @ wᵀ` and `xᵀ @ grad_y`.
#
# ## Your own operation
#
# An operation is a function. It computes its result, and it says how to compute the gradients of
# its inputs from the gradient of the result. `Tensor.of` takes three things: the result's array,
# the inputs (one here), and a function from the result's gradient to a gradient for each input.
# With more inputs it returns as many gradients, so it returns a tuple.


# %%
def cube(x: md.Tensor) -> md.Tensor:
    """x³."""
    return md.Tensor.of(x.data**3, (x,), lambda grad: (grad * 3 * x.data**2,))


def wrong_cube(x: md.Tensor) -> md.Tensor:
    """x³, but the backward lacks the 3."""
    return md.Tensor.of(x.data**3, (x,), lambda grad: (grad * x.data**2,))


# %% [markdown]
# **Question 4.** How would you notice the mistake? The forward is right, and a network with it even
# learns something.
#
# Check every backward: compare it with numerical slopes, as in lesson 1.

# %%
numbers = np.array([1.0, -2.0, 0.5])
gradcheck(cube, numbers)
print("cube is right")
try:
    gradcheck(wrong_cube, numbers)
except AssertionError as error:
    print(f"wrong_cube is not:\n  {error}")

# %% [markdown]
# ## A layer is parameters and a forward
#
# A layer first *declares* its parameters (weights and biases). `init` allocates and fills them. All
# parameters of a model are then in **one flat array**, one after another, and all gradients in
# another. This is useful: one array can be stepped by an optimizer, or sent to another computer.
#
# **Question 5.** The network below has layers from 2 to 16, from 16 to 16, and from 16 to 2
# numbers. How many parameters are in its flat array?


# %%
class Hidden(nn.Module):
    """tanh(x @ weight + bias)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x: md.Tensor) -> md.Tensor:
        return ops.tanh(self.linear(x))


def network() -> nn.Sequential:
    return nn.Sequential(Hidden(2, 16), Hidden(16, 16), nn.Linear(16, 2))


model = network().init(seed=0)
print(model)
for name, part in model.flat.slices.items():
    print(f"  {name:16} flat[{part.start}:{part.stop}]")

# %% [markdown]
# The initial numbers depend only on the *seed* and on the parameter's *name*. So a part of a model
# that is built alone, perhaps on another computer, has exactly the numbers of the whole:

# %%
piece = network()[2:].init(seed=0)
assert (piece.state()["2.weight"] == model.state()["2.weight"]).all()

# %% [markdown]
# ## Learning a spiral
#
# Two classes of points form two spirals. For each point the network computes two numbers, a score
# for each class; scores are also called *logits*. *Softmax* makes probabilities of them: all
# positive, with the sum 1. The loss is the **cross-entropy**: minus the logarithm of the
# probability of the right class, as a mean over the points. It is 0 if the network is sure and
# right.
#
# $$p_j = \frac{e^{z_j}}{\sum_k e^{z_k}} \qquad \text{loss} = -\log p_{\text{right}}$$
#
# One step of training is always the same: gradients to zero (they would add up), forward, loss,
# backward, and a step against the gradient. `no_grad` says that no backward will come, so nothing
# is stored for it.

# %%
draw = np.random.default_rng(0)
turn = np.sqrt(draw.random(400)) * 3 * np.pi
label = np.arange(400) % 2
angle = turn + np.pi * label
points = turn[:, None] / 10 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
points = (points + draw.normal(0, 0.02, points.shape)).astype(np.float32)

cross_entropy = nn.CrossEntropy()
across = np.linspace(-1.15, 1.15, 150, dtype=np.float32)
grid = np.stack(np.meshgrid(across, across), axis=-1).reshape(-1, 2)
STEPS, SHOWN = 3000, (0, 800, 3000)
losses, views = [], {}
for step in range(STEPS + 1):
    if step in SHOWN:
        with md.no_grad():
            logits = model(grid).data
        views[step] = (logits[:, 1] - logits[:, 0]).reshape(150, 150)  # > 0: class 1 is likelier
    model.zero_grad()
    loss = cross_entropy(model(points), label)
    loss.backward()
    model.flat.data -= 0.5 * model.flat.grad
    losses.append(loss.item())
    if step % 500 == 0:
        print(f"step {step:4}: loss {losses[-1]:.4f}")
with md.no_grad():
    right = (model(points).data.argmax(axis=1) == label).mean()
print(f"{right:.1%} of the points are on the right side")
assert right > 0.97

# %% [markdown]
# ## The picture
#
# Above: the flat array and its parts. Below: the class that the network gives to every point of the
# plane, at the start, during training, and at the end. On the black line both classes are equally
# likely.

# %%
figure = plt.figure(figsize=(12, 5.2), layout="constrained")
bar, *below = figure.subplot_mosaic("FFFF;LABC", height_ratios=[0.22, 1]).values()
colours = plt.get_cmap("tab20")
for index, (name, part) in enumerate(model.flat.slices.items()):
    size, middle = part.stop - part.start, (part.start + part.stop) / 2
    bar.barh(0, size, left=part.start, color=colours(index), edgecolor="white")
    if size > 30:
        text = f"{name}\n{model.named_parameters()[name].shape}"
        bar.text(middle, 0, text, ha="center", va="center", fontsize=9)
    else:
        bar.annotate(name, (middle, 0.4), (middle, 0.75), ha="center", fontsize=8)
bar.set(xlim=(0, model.flat.size), ylim=(-0.4, 1.1), yticks=[])
bar.set_title(f"model.flat.data: all {model.flat.size} parameters in one row", fontsize=11)
bar.spines[["top", "right", "left"]].set_visible(False)

curve, *maps = below
curve.semilogy(losses, color="0.25")
for step in SHOWN[1:]:
    curve.plot(step, losses[step], "o", color="#c0392b")
curve.set(xlabel="step", ylabel="loss")
curve.set_title("The loss", fontsize=11)
curve.grid(alpha=0.3)
curve.spines[["top", "right"]].set_visible(False)
for axes, (step, view) in zip(maps, views.items(), strict=True):
    axes.imshow(
        np.tanh(view), origin="lower", extent=(-1.15, 1.15) * 2, cmap="RdBu", alpha=0.75, vmin=-1.3,
        vmax=1.3,
    )  # fmt: skip
    axes.contour(across, across, view, levels=[0], colors="black", linewidths=1)
    axes.scatter(*points.T, c=label, cmap="RdBu", s=9, edgecolors="white", linewidths=0.3)
    axes.set(xticks=[], yticks=[])
    axes.set_title(f"step {step}", fontsize=11)
print("picture:", save(figure, "out/lessons/02_tensors_and_layers.png"))

# %% [markdown]
# ## What to take away
#
# 1. A tensor is an array that stores how it was computed; its gradient has the same shape.
# 2. If broadcasting repeats a number, the backward adds up the gradients of the copies.
# 3. A layer declares parameters; `init` puts all of them into one flat array.
# 4. Check every backward that you write against numerical slopes.
#
# **Try it:**
#
# 1. Replace `ops.tanh` by `ops.relu`. How do the borders in the picture change, and why?
# 2. Write `sigmoid`, 1/(1 + e⁻ˣ), as an operation, and check it. (Its derivative is y(1 − y), if y
#    is its result.)
# 3. Count a step, op by op: `with count_operations() as counted:` (from `minidist.inspect`) around
#    the lines that compute its loss and gradients, then `rich.print(counted.table())`. *FLOPs* are
#    floating-point operations, such as additions. Which ops read or write the most bytes for each?
#
# <details><summary>Answers</summary>
#
# 1. They get corners: a network of ReLUs is linear in pieces, and tanh bends smoothly. Here it also
#    trains less steadily: 92 % of the points in place of 99.5 %.
# 2. As `cube`:
#
#        def sigmoid(x):
#            y = 1 / (1 + np.exp(-x.data))
#            return md.Tensor.of(y, (x,), lambda grad: (grad * y * (1 - y),))
#
# 3. `tanh` and the loss: the table counts no multiplications or additions for them, and `linear`
#    does 2.7 for each byte. A processor can do tens of operations in the time of moving one byte,
#    so such ops wait for memory.
#
# </details>
#
# **Marked exercises:** `minidist exercise start matmul_backward`, `minidist exercise start
# broadcast_backward`, `minidist exercise start cross_entropy`. Next: `03_optimizers.py`.
