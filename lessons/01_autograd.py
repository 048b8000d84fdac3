# %% [markdown]
# # 1. Automatic differentiation, from a single number
#
# To train a network we ask one question, millions of times: *if I change this weight a little, how
# does the loss change?* The answer is a derivative. This lesson builds, in about 30 lines, a
# program that finds the derivative of any formula, and shows a typical mistake in it.
#
# About 20 minutes. At the end you know how a program finds all derivatives of a formula in one pass
# from its result back to its inputs, and why the order of this pass matters.
#
# You need: Python, and what a derivative is. Run it with `python lessons/01_autograd.py`.

# %%
from __future__ import annotations

import matplotlib.pyplot as plt

import minidist as md
from minidist.plots import save
from minidist.plots.messages import draw_sequence

# %% [markdown]
# ## A numerical derivative
#
# Take $L = (w x + b - y)^2$: the squared error of a straight line at one point. $L$ is the *loss*,
# the number that training makes small; $w$ and $b$ are the *weights*, the numbers that it may
# change. To find how $L$ depends on $w$, change $w$ a little in both directions:


# %%
def loss(w, b, x=2.0, y=1.0):
    return (w * x + b - y) ** 2


tiny = 1e-6
slope = (loss(1.5 + tiny, 0.5) - loss(1.5 - tiny, 0.5)) / (2 * tiny)
print(f"slope in w, numerically: {slope:.6f}")

# %% [markdown]
# This works for every formula. But it takes two evaluations *for each weight*, and a small network
# has a million weights. We want all slopes for about the cost of one evaluation.
#
# ## Remember how each number was computed
#
# The chain rule says: if $L$ depends on $u$ and $u$ depends on $w$, then
# $\frac{dL}{dw} = \frac{dL}{du} \cdot \frac{du}{dw}$. So let every number store its *parents* (the
# numbers that it was computed from) and the *local slope* for each of them. Then start at $L$,
# where the slope is 1, go backwards, and multiply the slopes.


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
# The pass from the result to its inputs is called the *backward*, and the slope that it finds for a
# number is its *gradient*. The first idea is usually recursion: give each parent its part of the
# gradient, then do the same for the parent. A number that is used twice gets two parts, so we *add*
# them up in `grad`.


# %%
def backward_wrong(result: Scalar) -> None:
    result.grad = 1.0
    send_on(result)


def send_on(node: Scalar) -> None:
    for parent, slope in zip(node.parents, node.slopes, strict=True):
        parent.grad += node.grad * slope
        send_on(parent)


w, b, x, y = Scalar(1.5), Scalar(0.5), Scalar(2.0), Scalar(1.0)
line = w * x + b
backward_wrong(line)
print(f"d line / d w = {w.grad}   (right: it is x = 2)")

# %% [markdown]
# Good. Now a formula in which a *computed* number is used twice:
#
#     b = a + a
#     c = b + b
#
# $c = 4a$, so the slope is 4 for every $a$. **Question 1.** What does this recursion say? Follow it
# on paper: `c` sends 1 to `b`, then `b` sends to `a`, and so on.

# %%
a = Scalar(3.0)
b = a + a
c = b + b
backward_wrong(c)
print(f"wrong recursion says dc/da = {a.grad}, but c = 4a")
assert a.grad == 6.0

# %% [markdown]
# Six! `c` sent 1 to `b`, and `b` *immediately* sent 1 + 1 to `a`. Then `c` sent its second 1: now
# `b.grad` is 2, and `b` sent 2 + 2. But the first 1 in this 2 had already been sent. `a` got
# 2 + 4 = 6: **`b` sent its gradient before it was complete.** (A test with only `a + a` does not
# find this mistake, because `a` has no parents.)
#
# ## One repair is right, but slow
#
# We could send only the part that has *just* arrived, and not the sum. Then every path from `c` to
# `a` is followed separately. This is correct.
#
# **Question 2.** How many additions `grad += ...` does it take for `b = a + a`, `c = b + b`? And
# for a chain of 16 such doublings?


# %%
def backward_slow(node: Scalar, arrived: float = 1.0) -> int:
    """Returns how many additions to parents it made."""
    node.grad += arrived
    return sum(
        1 + backward_slow(parent, arrived * slope)
        for parent, slope in zip(node.parents, node.slopes, strict=True)
    )


def doublings(n: int) -> tuple[Scalar, Scalar]:
    first = last = Scalar(1.0)
    for _ in range(n):
        last = last + last
    return first, last


for n in (2, 4, 8, 16):
    first, last = doublings(n)
    print(f"{n:2} doublings, path by path: {backward_slow(last):7,} additions")
    assert first.grad == 2.0**n

# %% [markdown]
# ## The right order
#
# Two doublings have 4 paths, 16 have 65,536, and each path is walked to its end. So a number must
# send its gradient **once, after it has the gradients of all its uses**. An order in which every
# number comes after all of its users is a *reverse topological order*. To find it: first count how
# often each number is used; then take a number when all its uses are done.


# %%
def backward(result: Scalar) -> int:
    """Returns how many additions it made."""
    uses, found, additions = {result: 0}, [result], 0
    for node in found:  # first: who is used how often? (the list grows meanwhile)
        for parent in node.parents:
            if parent not in uses:
                found.append(parent)
            uses[parent] = uses.get(parent, 0) + 1

    result.grad = 1.0
    ready = [result]
    while ready:  # then: take those whose gradient is complete
        node = ready.pop()
        for parent, slope in zip(node.parents, node.slopes, strict=True):
            parent.grad += node.grad * slope
            additions += 1
            uses[parent] -= 1
            if uses[parent] == 0:  # the last use is done
                ready.append(parent)
    return additions


a = Scalar(3.0)
b = a + a
c = b + b
backward(c)
print(f"in the right order   dc/da = {a.grad}")
assert a.grad == 4.0
first, last = doublings(16)
print(f"16 doublings, in order: {backward(last)} additions, dL/da = {first.grad:,.0f}")

# %% [markdown]
# 32 additions, two for each doubling. There is no recursion either, so a chain of a million
# operations is no problem. `minidist/engine/tape.py` does the same, with arrays instead of numbers.
#
# In the picture each arrow is one addition, `grad +=` the number on the arrow. Time runs downwards,
# and below each number is its final gradient. On the left `b` sends twice, and sends its first part
# again. On the right it waits.

# %%
to_b, to_a, twice = ("c", "b", "+1"), ("b", "a", "+1"), ("b", "a", "+2")
wrong, in_order = [to_b, to_a, to_a, to_b, twice, twice], [to_b, to_b, twice, twice]
final = {"c": "grad = 1", "b": "grad = 2", "a": "grad = 6  ✗"}
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
draw_sequence(left, wrong, final, "#c0392b", "Wrong: b sends too early")
draw_sequence(right, in_order, final | {"a": "grad = 4  ✓"}, "#1e8449", "Right: b waits")
print("picture:", save(figure, "out/lessons/01_autograd.png"))

# %% [markdown]
# ## Training
#
# The slopes say in which direction the loss becomes smaller. Training is many small steps in this
# direction. Here a line is fitted to three points. **Question 3.** The points lie on y = 2x + 1.
# Where should `w` and `b` end?

# %%
points = [(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)]
w, b = Scalar(0.0), Scalar(0.0)
for step in range(201):
    total = Scalar(0.0)
    for x, y in points:
        error = w * Scalar(x) + b - Scalar(y)
        total = total + error * error
    backward(total)
    if step % 50 == 0:
        print(f"step {step:3}: loss {total.value:8.5f}, w = {w.value:.3f}, b = {b.value:.3f}")
    # New numbers, whose gradients begin at 0: the old gradients would add up.
    w, b = Scalar(w.value - 0.05 * w.grad), Scalar(b.value - 0.05 * b.grad)
assert abs(w.value - 2) < 0.01 and abs(b.value - 1) < 0.02

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

# %% [markdown]
# ## What to take away
#
# 1. Every number stores its parents and the local slopes; one backward finds *all* slopes.
# 2. A number that is used several times **adds** the gradients of its uses.
# 3. It sends the sum to its parents **once, after the last use**. Remember `c = b + b`.
#
# **Try it:**
#
# 1. Add `__neg__` and `relu` (0 for negative numbers, all others as they are) to `Scalar`.
# 2. Change `ready.pop()` to `ready.pop(0)`. Does the answer change? Why not?
# 3. Find the slope of the first cell, 10, with `backward`.
#
# <details><summary>Answers</summary>
#
# 1. Each stores its local slope:
#
#        def __neg__(self):
#            return Scalar(-self.value, (self,), (-1.0,))
#
#        def relu(self):
#            return Scalar(max(self.value, 0.0), (self,), (float(self.value > 0),))
#
# 2. No. `ready` has only numbers whose gradients are complete, and these can be taken in any order.
# 3. `error = w * x + b - y`, then `backward(error * error)`: `w.grad` is 10. `error` is 2.5 and is
#    used twice, so its gradient is 2.5 + 2.5 = 5, and that of `w` is x times as large.
#
# </details>
#
# **Marked exercise:** `minidist exercise start backward_order`. Next: `02_tensors_and_layers.py`.
