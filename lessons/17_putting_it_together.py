# %% [markdown]
# # 17. Putting it together: a mesh
#
# Three ways to use many ranks: give each some *samples* (data parallel), some *layers* (pipeline),
# or a part of *each layer* (tensor parallel). Large models use all three at once. Eight ranks
# become a cube, and each way of cutting gets an axis.
#
# About 35 minutes. At the end you know how the axes share the work, why the mesh has this order,
# what easily goes wrong between two of them, and which axis is for what.
#
# You need: lessons 7, 11 and 16.

# %%
import matplotlib.pyplot as plt
import numpy as np

from minidist import LocalWorld, Machine, launch
from minidist.comm import first_process, launched_size, print_once
from minidist.comm.timeline import draw_timeline
from minidist.data import Batches, shakespeare
from minidist.engine.array import defaults
from minidist.models import gpt
from minidist.nn import CrossEntropy
from minidist.optim import AdamW
from minidist.parallel import Mesh, MeshParallel, Serial
from minidist.plots import save

CUBE = {"dp": 2, "pp": 2, "tp": 2}
print_once(launch(lambda comm: str(Mesh(comm, **CUBE)), 8, LocalWorld())[0])

# %% [markdown]
# These are the *groups* along each axis: the ranks that share work in this way.
#
# **Question 1.** Two ranks of a group along `tp` are neighbours in rank, those along `dp` are far
# apart. Machines have fast links inside and slow ones between. Why is the order this one?
#
# Let us count what a rank sends along each axis in one step.

# %%
training, _ = shakespeare(32)
batches = Batches(training, size=16, seed=0)


def model():
    return gpt(63, context=32, width=64, layers=2, heads=4, dropout=0.1)


def build(comm, mesh=CUBE, **options):
    if comm.size == 1:
        return Serial(model(), CrossEntropy(), AdamW(3e-3), comm, clip=1.0)
    options = {"microbatches": 4, "clip": 1.0} | options
    return MeshParallel(model(), CrossEntropy(), AdamW(3e-3), comm, mesh=mesh, **options)


def sent_by_axis(comm):
    method = build(comm)
    method.step(batches[0])
    comm.trace.record = True
    method.step(batches[1])
    found = {"tensor": [0, 0], "pipeline": [0, 0], "data": [0, 0]}
    for event in comm.trace.events:
        if event.kind in ("send", "isend", "sendrecv"):
            first = event.name.split(" ")[0]
            axis = first if first in found else "pipeline"
            found[axis][0] += 1
            found[axis][1] += event.nbytes
    return found


for axis, (count, nbytes) in launch(sent_by_axis, 8, LocalWorld())[0].items():
    print_once(f"{axis:9} {count:4} messages  {nbytes / 1e3:8.1f} KB a step, from rank 0")

# %% [markdown]
# Tensor parallelism sends in every layer of every microbatch, and waits each time. A pipeline sends
# once at each boundary. Replicas meet once a step. So the axis that talks most is the innermost:
# neighbours in rank are most often on one machine.
#
# ## Does it still train the same model?
#
# Each axis alone equals serial training, as the lessons before have shown.
#
# **Question 2.** Is that enough? Name a quantity that belongs to the *whole* model, and so to all
# three axes together.
#
# The loss is divided by the number of targets in the *whole* batch. The norm that we clip by is
# that of the *whole* gradient: a number that is cut counts where it is; one that is whole on both
# tensor ranks counts *once*; a tied one, on two stages, counts once; a sharded one at its owner.
# And the tied embedding's gradient is a sum over two stages, to be finished before any replica
# sends it on.


# %%
def train(comm, **options):
    with defaults(dtype="float64"):
        method = build(comm, **options)
        return [method.step(batches[step]) for step in range(4)], method.parameters()


expected, reference = launch(train, 1, LocalWorld())[0]
MESHES = {
    "dp=8": {"mesh": {"dp": 8}},
    "pp=4, 1F1B": {"mesh": {"pp": 4}},
    "tp=4": {"mesh": {"tp": 4}},
    "2 x 2 x 2": {},
    "2 x 2 x 2, sequence": {"sequence": True},
    "2 x 2 x 2, ZeRO 1": {"zero": 1},
    "2 x 2 x 2, ZeRO 3, zero bubble": {"zero": 3, "schedule": "zero_bubble_h1"},
}
for name, options in MESHES.items():
    ranks = int(np.prod(list(options.get("mesh", CUBE).values())))
    losses, got = launch(lambda comm, o=options: train(comm, **o), ranks, LocalWorld())[0]
    gap = max(float(np.abs(got[n] - reference[n]).max()) for n in reference)
    print_once(f"{name:31} loss {losses[-1]:.9f}, serial {expected[-1]:.9f}, parameters {gap:.0e}")

# %% [markdown]
# ## On real ranks
#
# So far every rank was simulated. The next lines run on the ranks that there are: four simulated
# ones under plain `python`, and real processes that send real messages under
#
#     minidist run -n 2 lessons/17_putting_it_together.py
#
# The mesh is what your ranks can be: two stages if they are even, and replicas of them.


# %%
def on_these_ranks(comm):
    stages = 2 if comm.size % 2 == 0 else 1
    mesh = {"dp": comm.size // stages, "pp": stages}
    return mesh, *train(comm, mesh=mesh)


found = launch(on_these_ranks, 4)
kind = "real" if launched_size() else "simulated"
mesh, losses, got = found[0]
gap = max(float(np.abs(got[n] - reference[n]).max()) for n in reference)
print_once(f"{len(found)} {kind} ranks, {mesh}: loss {losses[-1]:.9f}, parameters {gap:.0e}")

# %% [markdown]
# ## What goes wrong between two axes
#
# Each of these bugs was in a large code base. All of them train, a little worse.
#
# | axes | bug | what you see |
# |---|---|---|
# | tensor, clipping | whole weights count once for each rank | the norm is too large |
# | pipeline, clipping | each stage clips by its own norm | stages take steps of different lengths |
# | ZeRO, clipping | each shard clips by its own norm | the same, and it depends on the ranks |
# | data, pipeline | the tied gradient leaves before both uses are in | two different embeddings |
# | tensor, sequence | norms' gradients not summed | replicas of one weight drift apart |
# | pipeline, dropout | the second forward draws another mask | gradients of another function |
# | any | loss divided by an axis' length | Adam hides it: its step has no scale |
#
# Why would a test with Adam not find the last one, and a test with SGD would?
#
# Adam divides the gradient by its own size, so a constant factor falls out. SGD's step becomes
# larger by that factor. Test with SGD.
#
# ## One step, in one picture
#
# **Question 3.** Find in the picture: the bubble of the pipeline; the moment at which the replicas
# meet; and what ranks 0 and 1 do together all the time.

# %%
if first_process():
    world = LocalWorld(Machine(latency=5e-6, bandwidth=2e9, flops=2e10), record=True)

    def one_step(comm):
        method = build(comm, microbatches=3)
        method.step(batches[0])
        for trace in (comm.trace, *comm.trace.streams):
            trace.events.clear()
        comm.barrier()
        method.step(batches[1])

    launch(one_step, 8, world)
    events = [trace.events for trace in world.traces]
    figure, axes = plt.subplots(figsize=(13, 6.5), layout="constrained")
    draw_timeline(
        axes,
        events,
        "one step on dp=2, pp=2, tp=2: full bars compute, pale ones communicate",
        steps=True,
        legend="right",
        axes_of_mesh=True,
    )
    axes.spines[["top", "right"]].set_visible(False)
    print(f"picture: {save(figure, 'out/lessons/17_putting_it_together.png')}")

# %% [markdown]
# Ranks 0 and 1 add up on the tensor axis in each layer. The bubble is the time in which a stage
# waits for the other one: ranks 2 and 3 at the beginning, ranks 0 and 1 before each backward. The
# replicas meet near the end: the data axis.
#
# ## Which axis for what?
#
# - The model fits on a rank: data parallel, with ZeRO if the optimizer's state does not.
# - A layer is too large, or too slow: tensor parallel, on as many ranks as have fast links.
# - There are too many layers: a pipeline, across slower links. It wants many microbatches.
# - All that is left: data parallel again, over the slowest links; it hides behind the backward.
# - Long sequences: cut them too, wherever the tensor axis is.
#
# A checkpoint has the names and shapes of serial training. So a run can go on with another mesh,
# when there are more ranks, or fewer.
#
# **Try it:**
#
# 1. Let `simulate` of `minidist.parallel` predict a step:
#
#        machine = Machine(latency=5e-6, bandwidth=2e9, flops=2e10)
#        simulate(lambda comm: build(comm, mesh=CUBE), batches, 8, machine).step_seconds
#
#    Which mesh of eight ranks is the fastest? And with a bandwidth 100 times lower?
# 2. Print `method.cost(batch, Machine()).peak_bytes` of dp=8 and of dp=2, pp=2, tp=2, and add up
#    the kinds. How many times as much does the first hold?
#
# <details><summary>Answers</summary>
#
# 1. dp=8 with 2.7 ms, before dp=4, pp=2 (3.0) and the cube (3.2): the model is small, and dp sends
#    once a step. With the low bandwidth it is dp=4, pp=2 with 22 ms; the cube needs 34, dp=8 39,
#    and tp=8, which sends in each layer, 79.
# 2. 2.4 times: 2.04 MB against 0.85. Only the batch is cut along dp; pp and tp cut the model.
#
# </details>
