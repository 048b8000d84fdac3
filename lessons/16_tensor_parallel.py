# %% [markdown]
# # 16. Tensor parallel: cut the layer itself
#
# A pipeline gives each rank some layers. What if one layer is too large for a rank? Then the layer
# itself must be cut. A linear layer is a product of matrices, and a matrix can be cut in two ways.
#
# About 45 minutes. At the end you know how to cut an MLP and attention so that two layers need one
# sum, what is easily forgotten, and what cutting along the sequence saves.
#
# You need: lessons 6 and 23. Run it with `python lessons/16_tensor_parallel.py`.

# %%
import matplotlib.pyplot as plt
import numpy as np

from minidist import LocalWorld, Machine, Tensor, launch, ops
from minidist.collectives import all_reduce
from minidist.comm import first_process, launched_size, print_once
from minidist.comm.timeline import draw_timeline
from minidist.data import Batches, shakespeare
from minidist.engine.array import defaults
from minidist.models import gpt
from minidist.nn import CrossEntropy
from minidist.ops import collectives as messages
from minidist.optim import SGD
from minidist.parallel import Serial, TensorParallel
from minidist.parallel.tensor import show
from minidist.plots import save

# %% [markdown]
# ## On paper
#
# The MLP of a transformer is Y = GELU(X A) B. Two ranks share it.
#
# **Question 1.** Cut A by columns, A = [A₁ A₂]: rank 0 computes X A₁, rank 1 computes X A₂. Does
# GELU need anything from the other rank?

# %%
random = np.random.default_rng(0)
X, A, B = (random.standard_normal(shape) for shape in ((3, 4), (4, 8), (8, 4)))


def gelu(x):
    return ops.gelu(Tensor(x)).data


by_columns = np.concatenate([gelu(X @ A[:, :4]), gelu(X @ A[:, 4:])], axis=1)
print_once(f"by columns, off by {np.abs(by_columns - gelu(X @ A)).max():.1e}")

# %% [markdown]
# No: each rank has some of the outputs, complete, and GELU works on each number alone.
#
# **Question 2.** Cut A by rows instead, so that X A = X₁A₁ + X₂A₂. Does GELU need something now?

# %%
by_rows = gelu(X[:, :2] @ A[:2]) + gelu(X[:, 2:] @ A[2:])
print_once(f"by rows,    off by {np.abs(by_rows - gelu(X @ A)).max():.1e}")

# %% [markdown]
# Yes: each rank has a *summand* of every output, and GELU of a sum is not the sum of GELUs. The
# ranks would have to add first.
#
# **Question 3.** After A by columns, each rank has half of the hidden features. How must B be cut,
# so that a rank can go on with what it has? What is missing at the end?

# %%
hidden = gelu(X @ A)
summands = [hidden[:, :4] @ B[:4], hidden[:, 4:] @ B[4:]]
print_once(f"B by rows: the sum is off by {np.abs(sum(summands) - hidden @ B).max():.1e}")

# %% [markdown]
# Columns, then rows: two layers with *one* sum at the end, an all-reduce. That is Megatron's trick.
#
# ## The backward
#
# **Question 4.** In the backward, what is the gradient of the summands, given that of the sum Y?
# And X is used by both ranks: what is *its* gradient?
#
# The derivative of a sum by each summand is 1, so the gradient of Y goes to every rank as it is.
# And X has two uses, one on each rank, so its gradient is the sum over the ranks: an all-reduce
# again. The two ends have names: *g* adds in the forward and does nothing in the backward; *f* does
# the opposite.


# %%
def mlp_on_two_ranks(comm):
    half = slice(4 * comm.rank, 4 * comm.rank + 4)
    x, a, b = (Tensor(array, requires_grad=True) for array in (X, A[:, half], B[half]))
    with_f = messages.copy_to(x, comm)  # f
    y = messages.reduce_from(ops.gelu(with_f @ a) @ b, comm)  # g
    (y * y).sum().backward()
    return y.data, x.grad, a.grad


x, a, b = (Tensor(array, requires_grad=True) for array in (X, A, B))
y = ops.gelu(x @ a) @ b
(y * y).sum().backward()
for rank, (out, grad_x, grad_a) in enumerate(launch(mlp_on_two_ranks, 2, LocalWorld())):
    half = slice(4 * rank, 4 * rank + 4)
    print_once(
        f"rank {rank}: Y off by {np.abs(out - y.data).max():.0e}, dX by "
        f"{np.abs(grad_x - x.grad).max():.0e}, dA by {np.abs(grad_a - a.grad[:, half]).max():.0e}"
    )


# %% [markdown]
# **Question 5.** What happens to a bias of the second layer, if each rank adds it before the sum?


# %%
def bias_twice(comm):
    summand = np.array([1.0 + 10.0])  # this rank's part of X B, and the whole bias
    all_reduce(comm, summand)
    return summand[0]


print_once(f"1 + 1 + bias of 10 is 12, and here {launch(bias_twice, 2, LocalWorld())[0]:g}")

# %% [markdown]
# It counts once for each rank, and a model trains quite well with this bug. So the bias is added
# after the sum.
#
# ## Attention, and the vocabulary
#
# Heads never look at each other. So a rank takes some heads: their columns of the product that
# makes queries, keys and values, and their rows of the last one. Columns, then rows, as before.
#
# The table of tokens is cut by tokens. For the loss a rank needs log Σ exp over *all* tokens, of
# which it has some: three numbers for each position are enough, and the logits are never gathered.
#
# **Question 6.** Below is the plan for a small GPT on two ranks. How many all-reduces does a block
# need in a step, forward and backward together?


# %%
def small():
    return gpt(63, context=32, width=32, layers=2, heads=4, dropout=0.1)


print_once(show(small(), 2))

# %% [markdown]
# Two pairs of columns and rows (attention and MLP), each with g in the forward and f in the
# backward: four. With b sequences of s tokens and h features on t ranks, each sum has bsh numbers,
# and a ring sends 2(t - 1)/t of them: 8bsh(t - 1)/t in all.
#
# ## The same training
#
# Everything else is as in serial training: the same initial values (each rank draws the whole and
# keeps its part), the same dropout masks. So must be the losses.

# %%
training, _ = shakespeare(32)
batches = Batches(training, size=8, seed=0)


def train(comm, **options):
    with defaults(dtype="float64"):
        kind = Serial if comm.size == 1 else TensorParallel
        method = kind(small(), CrossEntropy(), SGD(0.2, momentum=0.9), comm, **options)
        losses = [method.step(batches[step]) for step in range(3)]
        before = comm.trace.sent.nbytes
        method.step(batches[3])
        held = sum(array.nbytes for array in method.arrays()["parameters"])
        cost = method.cost(batches[3], Machine())
        return losses, comm.trace.sent.nbytes - before, held, cost.peak_bytes["activations"][0]


rows = {}


def measure(name, ranks, **options):
    rows[name] = launch(lambda comm: train(comm, **options), ranks, LocalWorld())[0]
    losses, sent, held, saved = rows[name]
    gap = max(abs(x / y - 1) for x, y in zip(losses, rows["serial"][0], strict=True))
    print_once(
        f"{name:27} loss {losses[-1]:.6f} (gap {gap:.0e})  sends {sent / 1e3:7.1f} KB a step  "
        f"parameters {held / 1e3:6.1f} KB  activations {saved / 1e3:7.1f} KB"
    )


measure("serial", 1)
measure("tensor, 2 ranks", 2)
measure("tensor, 4 ranks", 4)

# %% [markdown]
# ## The sequence: cut what is left
#
# With 4 ranks the parameters are almost a quarter. Why are the activations not? Norms, dropout and
# residuals are whole on every rank: each has all bsh numbers of them. But these layers work on each
# position alone. So cut them along the *sequence*: a rank has a quarter of the positions. Before
# the columns all positions are needed: an all-gather. After the rows each rank needs its positions
# of the sum: a reduce-scatter. Together they send what an all-reduce sends.
#
# A norm's weights are whole, but each rank used them for its own positions. So their gradient is a
# sum over the ranks. Forget it, and nothing fails; the model only learns more slowly.
#
# **Question 7.** The weights' gradient needs the gathered input again. It can be kept, or gathered
# a second time. Which of the two sends as much as without the sequence?

# %%
measure("tensor + sequence, 4 ranks", 4, sequence=True)
measure("the same, inputs kept", 4, sequence=True, keep=True)

# %% [markdown]
# Kept, a block sends 8bsh(t - 1)/t numbers, as before; gathered again, 10bsh(t - 1)/t, and it
# stores less. arXiv 2205.05198 has formulas for what it stores.
#
# ## When does it send?
#
# **Question 8.** A sum is needed inside every layer, so the forward must wait for it. What can the
# backward compute meanwhile?


# %%
def timeline(overlap):
    world = LocalWorld(Machine(latency=5e-6, bandwidth=2e9, flops=2e10), record=True)

    def one_step(comm):
        method = TensorParallel(small(), CrossEntropy(), SGD(0.2), comm, overlap=overlap)
        for trace in (comm.trace, *comm.trace.streams):
            trace.events.clear()
        method.step(batches[0])

    launch(one_step, 2, world)
    return [trace.events for trace in world.traces]


if first_process():
    figure, panels = plt.subplots(2, 1, figsize=(12, 6), layout="constrained")
    events = {overlap: timeline(overlap) for overlap in (False, True)}
    longest = max(e.end for kind in events.values() for rank in kind for e in rank)
    for axes, (overlap, by_rank) in zip(panels, events.items(), strict=True):
        name = "the sums overlap the weights' gradients" if overlap else "nothing overlaps"
        draw_timeline(axes, by_rank, f"one step on 2 ranks, {name}", steps=True, legend="right")
        axes.set_xlim(0, longest * 1e3)
        axes.spines[["top", "right"]].set_visible(False)
    print(f"picture: {save(figure, 'out/lessons/16_tensor_parallel.png')}")

# %% [markdown]
# The gradient of the weights: dX is a sum over the ranks, and dW does not need it.
#
# ## On real ranks
#
# So far every rank was simulated. The next lines run on the ranks that there are: four simulated
# ones under plain `python`, and real processes that send real messages under
#
#     minidist run -n 2 lessons/16_tensor_parallel.py
#
# **Question 9.** Four heads on three ranks: who gets two? And on eight ranks?

# %%
found = launch(train, 4)
kind = "real" if launched_size() else "simulated"
losses, sent, held, _ = found[0]
gap = max(abs(x / y - 1) for x, y in zip(losses, rows["serial"][0], strict=True))
print_once(
    f"{len(found)} {kind} ranks: loss {losses[-1]:.6f} (gap {gap:.0e}), "
    f"sends {sent / 1e3:.1f} KB a step, holds {held / 1e3:.1f} KB of parameters"
)

# %% [markdown]
# Whole heads are dealt out: the first of three ranks gets two. For eight ranks four heads are too
# few, so attention stays whole there: every rank computes all of it, and the rest is cut.
#
# ## What to take away
#
# 1. Columns, then rows: two layers, one sum in the forward and one in the backward.
# 2. What belongs to the whole model (a bias, the norm of the gradient) must count once, and not
#    once for each rank.
# 3. Tensor parallelism sends in every layer, and waits for it. It wants the fastest links.
# 4. Along the sequence, the rest of the memory is cut too, for the same bytes.
#
# **Try it:**
#
# 1. In `mlp_on_two_ranks`, leave out f (use `x` in place of `with_f`). Which gradient is wrong?
# 2. Give the machine of the picture a latency of 1 ms. How much longer does a step take? How many
#    of its milliseconds are latency?
#
# <details><summary>Answers</summary>
#
# 1. That of X: each rank has only its own summand of it. The forward is right, and so is dA; in a
#    model all layers below would learn from a part of the gradient.
# 2. 25 ms in place of 1.5, and 24 of them are latency: 24 messages, one after the other. Overlap
#    saves 0.2 ms.
#
# </details>
#
# **Marked exercise:** `minidist exercise start tensor_parallel`.
