# %% [markdown]
# # 1. Automatic differentiation, from a single number
#
# To train a network we ask one question, millions of times: *if I change this weight a little, how
# does the loss change?* The answer is a derivative. This lesson builds, in about 30 lines, a
# program that finds the derivative of any formula, and shows a typical mistake in it.
#
# You need: Python, and what a derivative is. Run it with `python lessons/01_autograd.py`.

# %%
from __future__ import annotations

import time

import matplotlib.pyplot as plt

import minidist as md
from minidist.plots import save

# %% [markdown]
# ## A numerical derivative
#
# Take $L = (w x + b - y)^2$: the squared error of a straight line at one point. To find how
# $L$ depends on $w$, change $w$ a little in both directions:


# %%
def miss(w: float, b: float, x: float = 2.0, y: float = 1.0) -> float:
    return (w * x + b - y) ** 2


tiny = 1e-6
slope = (miss(1.5 + tiny, 0.5) - miss(1.5 - tiny, 0.5)) / (2 * tiny)
print(f"slope in w, numerically: {slope:.6f}")

# %% [markdown]
# This works for every formula. But it takes two evaluations *for each weight*, and a small network
# has a million weights. We want all slopes for about the cost of one evaluation.
#
# ## Remember how each number was computed
#
# The chain rule says: if $L$ depends on $u$ and $u$ depends on $w$, then
# $\frac{dL}{dw} = \frac{dL}{du} \cdot \frac{du}{dw}$. So if every number stores its *parents*
# (the numbers that it was computed from) and the *local slope* for each of them, we can start at
# $L$, where the slope is 1, go backwards, and multiply the slopes.


# %%
class Scalar:
    """A number that stores how it was computed."""

    def __init__(self, value: float, parents: tuple[Scalar, ...] = (), slopes=()) -> None:
        self.value = value
        self.parents = parents
        self.slopes = slopes  # d(self) / d(parent), one for each parent
        self.grad = 0.0  # d(the final result) / d(self), set by the backward

    def __add__(self, other: Scalar) -> Scalar:
        return Scalar(self.value + other.value, (self, other), (1.0, 1.0))

    def __sub__(self, other: Scalar) -> Scalar:
        return Scalar(self.value - other.value, (self, other), (1.0, -1.0))

    def __mul__(self, other: Scalar) -> Scalar:
        return Scalar(self.value * other.value, (self, other), (other.value, self.value))


# %% [markdown]
# ## A backward that looks right
#
# The first idea is usually recursion: give each parent its part of the gradient, then do the same
# for the parent. A number that is used twice gets two parts, so we *add* them up in `grad`.


# %%
def backward_wrong(result: Scalar) -> None:
    result.grad = 1.0
    send_on(result)


def send_on(node: Scalar) -> None:
    for parent, slope in zip(node.parents, node.slopes, strict=True):
        parent.grad += node.grad * slope
        send_on(parent)


w, b, x, y = Scalar(1.5), Scalar(0.5), Scalar(2.0), Scalar(1.0)
error = w * x + b - y
backward_wrong(error)
print(f"d error / d w = {w.grad}   (right: it is x = 2)")

# %% [markdown]
# Good. Now a formula in which a *computed* number is used twice:
#
#     b = a + a
#     c = b + b
#
# $c = 4a$, so the slope is 4 for every $a$.

# %%
a = Scalar(3.0)
b = a + a
c = b + b
backward_wrong(c)
print(f"wrong recursion says dc/da = {a.grad}, but c = 4a")
assert a.grad == 6.0

# %% [markdown]
# Six! What happened? `c` sent 1 to `b`, and `b` *immediately* sent 1 + 1 to `a`. Then `c` sent its
# second 1: now `b.grad` is 2, and `b` sent 2 + 2. But the first 1 in this 2 had already been sent.
# `a` got 2 + 4 = 6: **`b` sent its gradient before it was complete.**
#
# (`a + a` alone does not show the mistake, because `a` has no parents. A test with only `a + a`
# does not find it.)
#
# ## One repair is right, but slow
#
# We could send only the part that has *just* arrived, and not the sum. Then every path from `c` to
# `a` is followed separately. This is correct, but n such doublings have $2^n$ paths.


# %%
def backward_slow(node: Scalar, arrived: float = 1.0) -> None:
    node.grad += arrived
    for parent, slope in zip(node.parents, node.slopes, strict=True):
        backward_slow(parent, arrived * slope)


# %% [markdown]
# ## The right order
#
# So a number must send its gradient **once, after it has the gradients of all its uses**. An order
# in which every number comes after all of its users is a *reverse topological order*. To find it,
# count how often each number is used, and take a number when all its uses are done:


# %%
def backward(result: Scalar) -> None:
    uses = {result: 0}
    found = [result]
    for node in found:  # the list grows meanwhile
        for parent in node.parents:
            if parent not in uses:
                found.append(parent)
            uses[parent] = uses.get(parent, 0) + 1

    result.grad = 1.0
    ready = [result]
    while ready:
        node = ready.pop()
        for parent, slope in zip(node.parents, node.slopes, strict=True):
            parent.grad += node.grad * slope
            uses[parent] -= 1
            if uses[parent] == 0:  # the last use is done
                ready.append(parent)


a = Scalar(3.0)
b = a + a
c = b + b
backward(c)
print(f"in the right order   dc/da = {a.grad}")
assert a.grad == 4.0

# %% [markdown]
# Note that there is no recursion, so a chain of a million operations is no problem.
# `minidist/engine/tape.py` does the same, step by step, with arrays instead of numbers.
#
# How long do the two correct versions take on a chain of n doublings?


# %%
def doublings(n: int) -> tuple[Scalar, Scalar]:
    first = last = Scalar(1.0)
    for _ in range(n):
        last = last + last
    return first, last


def seconds(run, n: int) -> float:
    """The fastest of three runs; also checks the result, 2ⁿ."""
    fastest = float("inf")
    for _ in range(3):
        first, last = doublings(n)
        start = time.perf_counter()
        run(last)
        fastest = min(fastest, time.perf_counter() - start)
        assert first.grad == 2.0**n
    return fastest


short, long = range(1, 15), [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
slow = [seconds(backward_slow, n) for n in short]
fast = [seconds(backward, n) for n in long]
print(
    f"path by path, 14 doublings take {slow[-1] * 1e3:.1f} ms; in order, 16 take "
    f"{fast[4] * 1e3:.3f} ms"
)

# %% [markdown]
# ## The picture
#
# Each arrow is one addition, `grad +=` the number on the arrow. Time runs downwards, and below each
# number is its final gradient. On the left, `b` sends twice, and sends its first part again. In the
# middle it waits. On the right is the time of following every path separately.

# %%
WRONG, RIGHT, SLOW = "#c0392b", "#1e8449", "#b9770e"
COLUMN = {"c": 0.0, "b": 1.0, "a": 2.0}


def draw_messages(axes, title, colour, messages, final) -> None:
    """Draw which gradients are sent, in order from top to bottom."""
    for name, across in COLUMN.items():
        axes.plot([across, across], [0.2, 6.8], color="0.8", lw=1.5, zorder=0)
        box = {"boxstyle": "round,pad=0.45", "fc": "white", "ec": "0.3"}
        axes.text(across, 0, name, ha="center", va="center", fontsize=14, bbox=box)
        axes.text(across, 7.25, f"grad = {final[name]}", ha="center", va="center", fontsize=11)
    for order, (source, target, amount) in enumerate(messages, start=1):
        start, stop = COLUMN[source], COLUMN[target]
        arrow = {"arrowstyle": "-|>", "color": colour, "lw": 1.8, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", (stop, order), (start, order), arrowprops=arrow)
        axes.text((start + stop) / 2, order - 0.12, amount, ha="center", color=colour, fontsize=12)
    axes.set(xlim=(-0.5, 2.5), ylim=(7.7, -0.6))
    axes.set_title(title, color=colour, fontsize=12.5)
    axes.axis("off")


figure, (left, middle, right) = plt.subplots(
    1, 3, figsize=(13, 4.4), width_ratios=[1, 1, 1.25], layout="constrained"
)
draw_messages(
    left,
    "Wrong: b sends before it is complete",
    WRONG,
    [
        ("c", "b", "+1"),
        ("b", "a", "+1"),
        ("b", "a", "+1"),
        ("c", "b", "+1"),
        ("b", "a", "+2"),
        ("b", "a", "+2"),
    ],
    {"c": 1, "b": 2, "a": "6  ✗"},
)
draw_messages(
    middle,
    "Right: b waits for both uses",
    RIGHT,
    [("c", "b", "+1"), ("c", "b", "+1"), ("b", "a", "+2"), ("b", "a", "+2")],
    {"c": 1, "b": 2, "a": "4  ✓"},
)
right.loglog(short, slow, "o-", color=SLOW, label="every path alone: $2^n$ paths")
right.loglog(long, fast, "o-", color=RIGHT, label="each number once, in order")
right.set(xlabel="doublings in a row, n", ylabel="seconds")
right.set_title("Both are right, one is slow", fontsize=12.5)
right.legend(frameon=False)
right.grid(alpha=0.3)
right.spines[["top", "right"]].set_visible(False)
print("picture:", save(figure, "out/lessons/01_autograd.png"))

# %% [markdown]
# ## The same with minidist
#
# `md.Tensor` is a `Scalar` with an array. `requires_grad=True` says that we want its gradient.

# %%
a = md.Tensor([3.0], requires_grad=True)
b = a + a
c = b + b
c.backward()
print(f"minidist: dc/da = {a.grad}")

# A chain of a hundred thousand operations: no recursion, so no limit.
a = md.Tensor([1.0], requires_grad=True)
last = a
for _ in range(100_000):
    last = last + 1.0
last.backward()
print(f"through 100,000 operations: {a.grad}")

# %% [markdown]
# ## Training
#
# The slopes say in which direction the loss becomes smaller. Training is many small steps in this
# direction: here a line is fitted to three points.

# %%
points = [(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)]  # on the line y = 2x + 1
w, b = Scalar(0.0), Scalar(0.0)
for step in range(201):
    loss = Scalar(0.0)
    for x, y in points:
        error = w * Scalar(x) + b - Scalar(y)
        loss = loss + error * error
    backward(loss)
    if step % 50 == 0:
        print(f"step {step:3}: loss {loss.value:8.5f}, w = {w.value:.3f}, b = {b.value:.3f}")
    w, b = Scalar(w.value - 0.05 * w.grad), Scalar(b.value - 0.05 * b.grad)
assert abs(w.value - 2) < 0.01 and abs(b.value - 1) < 0.02

# %% [markdown]
# ## What to take away
#
# 1. Every number stores its parents and the local slopes; one backward finds *all* slopes.
# 2. A number that is used several times **adds** the gradients of its uses.
# 3. It sends the sum to its parents **once, after the last use**. Remember `c = b + b`.
#
# **Try it:** add `__neg__` and `relu` to `Scalar`. Then change `ready.pop()` to `ready.pop(0)`:
# does the answer change? Why not? Next: `02_tensors_and_layers.py`.
#
# <details><summary>Answer</summary>
#
# No. `ready` has only numbers whose gradients are complete, and these can be taken in any order.
#
# </details>
#
# **Marked exercise:** `minidist exercise start backward_order`.
