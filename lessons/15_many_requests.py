# %% [markdown]
# # 15. Many requests
#
# A trained language model answers requests: some long, some short, whenever they come. How does one
# model answer many of them at the same time?
#
# About 40 minutes. At the end you know why many requests are answered faster together, why a
# half-empty engine still lets them wait, and what several ranks send each other for it.
#
# You need: lesson 23. Run it with `python lessons/15_many_requests.py`. The model here is trained
# very little: what it writes does not matter.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np

from minidist import LocalWorld, launch
from minidist.comm import first_process, launched_size, print_once
from minidist.compress import fit
from minidist.data import Batches, shakespeare
from minidist.inference import Arrivals, Engine, MeshEngine, Request, mean_wait, run, serve
from minidist.inference.cost import bytes_of
from minidist.models import gpt, sample
from minidist.parallel import Mesh
from minidist.plots import save

LENGTH = os.environ.get("LESSON", "short")
STEPS, NEW, STREAM = {"quick": (2, 6, 20), "short": (150, 48, 400), "long": (1500, 64, 2000)}[
    LENGTH
]
training, _ = shakespeare(64, stride=1)
model = fit(gpt(63, 128, 64, 2, 4).init(0), Batches(training, 16), STEPS, 3e-3)

# %% [markdown]
# ## A cache in blocks
#
# For a new token (here a letter), attention needs the keys and values of all tokens before it. They
# are kept in a cache, in *blocks* of a few positions. A sequence takes blocks from a common pool,
# wherever they are free, and gives them back at its end. Its *table* says which are its own.
#
# **Question 1.** Three requests come at the same time, for 4, 8 and 3 new tokens. The engine has
# two places. When does the third one begin: after the first answer, or after both?

# %%
engine = Engine(model, at_once=2, blocks=8, block=4)
first = engine.submit(Request((1, 2, 3, 4, 5), 4, seed=1))
second = engine.submit(Request((6, 7), 8, seed=2))
third = engine.submit(Request((8, 9, 10), 3, seed=3))
while engine.busy:
    events = engine.step()
    tables = {one.number: one.part.table for one in engine._running}
    told = ", ".join(f"{event.number}→{event.token}" for event in events)
    print_once(f"tokens {told:14} tables after it {tables}, {engine.pool.free} of 8 blocks free")

# %% [markdown]
# The third request waits until the first one leaves its place, but not until the second one ends:
# this is *continuous* batching.
#
# ## The same answers
#
# Tokens are drawn at random.
#
# **Question 2.** Must an answer depend on who else is in the batch?
#
# No: each request has random numbers of its own, keyed by its seed. So each answer here is the one
# that `sample` gives for this request alone:

# %%
for number, (prompt, count) in enumerate((((1, 2, 3, 4, 5), 4), ((6, 7), 8), ((8, 9, 10), 3))):
    alone = sample(model, prompt, count, seed=number + 1).tolist()
    print_once(engine.answers[number].tokens, "alone:", alone)
    assert engine.answers[number].tokens == alone

# %% [markdown]
# ## How much faster?
#
# A step for eight sequences reads each weight once, where eight steps for one sequence read it
# eight times, and the work around each op is done once, too.
#
# **Question 3.** Sixteen at once in place of one: how many times as many tokens a second? And does
# the time from token to token, which one user sees, stay the same?

# %%
random = np.random.default_rng(0)
asked = [
    Request(tuple(random.integers(0, 63, int(random.integers(4, 24))).tolist()), NEW, seed=number)
    for number in range(16)
]
sizes, speeds, gaps = (1, 2, 4, 8, 16), [], []
for at_once in sizes:
    timing = run(Engine(model, at_once), asked)
    speeds.append(timing.tokens_a_second)
    gaps.append(timing.each_token() * 1e3)
    print_once(f"{at_once:2} at once: {speeds[-1]:6.0f} tokens a second, {gaps[-1]:.2f} ms a token")

# %% [markdown]
# About ten times as many, and each user waits about twice as long for a token.
#
# ## The queue
#
# Requests come at random. If on average they come faster than they are answered, the queue grows
# for ever. But even below that they wait, because sometimes many come together. For $c$ places, a
# rate of arrivals and a mean time for an answer, Erlang's formula gives the mean wait (see
# `inference/queueing.py`). Here is an engine on a clock that we move: a step takes 10 ms, and an
# answer has 12 tokens on average. The *load* is the share of its 4 places that are busy.
#
# **Question 4.** At a load of 50 % half of the places are free. How long is the mean wait? And how
# many times as long is it at 90 %?


# %%
class Clock:
    """Time that passes only in steps of the engine, and when it sleeps."""

    now = 0.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def waiting(load, places=4, step_seconds=0.01):
    """(mean seconds in the queue, Erlang's formula) when ``load`` of the places are busy."""
    draw, clock = np.random.default_rng(1), Clock()
    lengths = np.minimum(draw.geometric(1 / 12, STREAM), 100)
    service = lengths.mean() * step_seconds
    rate = load * places / service
    tiny = Engine(gpt(3, 128, 2, 1, 1).init(0), places)
    step = tiny.step

    def timed_step():
        clock.now += step_seconds
        return step()

    tiny.step = timed_step
    arrivals = np.cumsum(draw.exponential(1 / rate, STREAM)).tolist()
    requests = [Request((1,), int(length), temperature=0) for length in lengths]
    timing = run(tiny, requests, arrivals, clock=clock, sleep=clock.sleep)
    waited = timing.first_token_mean() - step_seconds  # the first token itself takes a step
    return waited, mean_wait(rate, service, places)


loads = (0.3, 0.5, 0.7, 0.8, 0.9)
waits = [waiting(load) for load in loads]
for load, (measured, theory) in zip(loads, waits, strict=True):
    wait = f"{measured * 1e3:6.1f} ms in the queue, theory {theory * 1e3:6.1f} ms"
    print_once(f"load {load:.0%}: {wait}")

# %% [markdown]
# From 50 to 90 % the wait becomes more than ten times as long. The engine is not exactly what the
# theory describes: a request that comes during a step waits for its end, lengths vary a little
# less, and a few hundred requests are not many for an average near full load. The shape is the
# same.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
left.plot(sizes, speeds, "o-", color="#1f618d")
left.set(xlabel="sequences at once", ylabel="tokens a second", title="More at once")
other = left.twinx()
other.plot(sizes, gaps, "s--", color="#b9770e")
other.set_ylabel("ms from token to token", color="#b9770e")
fine = np.linspace(0.05, 0.95, 60)
service = 12 * 0.01
right.plot(fine, [mean_wait(load * 4 / service, service, 4) * 1e3 for load in fine], color="0.6",
           label="theory (M/M/4)")  # fmt: skip
right.plot(loads, [measured * 1e3 for measured, _ in waits], "o", color="#1f618d", label="engine")
right.set(xlabel="load", ylabel="ms in the queue", title="How long requests wait")
right.legend(frameon=False)
for axes in (left, right):
    axes.spines["top"].set_visible(False)
if first_process():
    print("picture:", save(figure, "out/lessons/15_many_requests.png"))

# %% [markdown]
# ## Several ranks
#
# A model may be on several ranks, as in training: replicas (dp), parts of each layer (tp), stages
# (pp). Every rank keeps the same records: it knows which requests are in the batch, and gives them
# the same blocks of its own cache. So no decisions are sent, only activations and tokens.
#
# - **tp**: the sums of a cut layer, in each layer, for each token. All ranks work on each token, so
#   it may come sooner, if the links are fast.
# - **pp**: rows go from stage to stage, and tokens come back from the last. Few bytes, but a token
#   passes through all stages: the batch is cut into turns, so that all stages have something to do.
# - **dp**: the answers of one replica need nothing from another. Throughput, and no faster token.
#
# **Question 5.** Which of the three sends the most for the same requests?

# %%
few = [Request((1 + number, 2, 3), 5, seed=number) for number in range(6)]
expected = [sample(model, request.prompt, 5, seed=request.seed).tolist() for request in few]


def on_ranks(comm, mesh):
    answers, _ = serve(comm, model, lambda round: None if round else Arrivals(few), mesh=mesh)
    grid = Mesh(comm, **mesh)
    return [answers[number].tokens for number in answers], bytes_of(MeshEngine(model, grid), few)


for mesh in ({"dp": 2}, {"tp": 2}, {"pp": 2}, {"pp": 2, "tp": 2}):
    results = launch(lambda comm, mesh=mesh: on_ranks(comm, mesh), int(np.prod([*mesh.values()])),
                     world=LocalWorld())  # fmt: skip
    assert results[0][0] == expected
    inside = sum(formula for _, formula in results) if "dp" not in mesh else 0
    print_once(f"{mesh!s:20} the same answers; {inside:6,} bytes between the ranks of a replica")

# %% [markdown]
# The tensor ranks: they add in each layer. How much is sent follows from the requests alone,
# whatever shares the batch.
#
# ## On real ranks
#
# So far every rank was simulated, and the speeds are those of one process: measure them with plain
# `python`, where no other rank computes at the same time. The next lines run on the ranks that
# there are: four simulated ones under plain `python`, and real processes that send real messages
# under
#
#     minidist run -n 2 lessons/15_many_requests.py
#
# Each rank is a replica. Rank 0 has the queue, and gives each request to the replica that has the
# fewest tokens left to compute.
#
# **Question 6.** What does rank 0 send to another replica, and what comes back? Is it more if the
# model is larger?


# %%
def on_these_ranks(comm):
    before = comm.trace.sent.nbytes
    answers, _ = serve(comm, model, lambda round: None if round else Arrivals(few))
    return [answers[number].tokens for number in answers], comm.trace.sent.nbytes - before


found = launch(on_these_ranks, 4)
assert found[0][0] == expected
kind = "real" if launched_size() else "simulated"
sent = ", ".join(str(nbytes) for _, nbytes in found)
print_once(f"{len(found)} {kind} ranks: the same answers; bytes that each rank sent: {sent}")

# %% [markdown]
# Requests, and a few numbers in each round; tokens come back. No weight is sent, so the size of the
# model does not matter. `minidist bench requests` measures all this on real ranks.
#
# ## What to take away
#
# 1. Let requests join and leave at each step, and give memory in blocks: nothing waits for the
#    longest, and nothing is reserved for what does not come.
# 2. An answer must not depend on who else is in the batch: test it.
# 3. Near full load the wait becomes very long. Plan for 70 %, not for 99 %.
# 4. On several ranks each keeps the same records, so that no decisions need to be sent.
#
# **Try it:**
#
# 1. Run `lessons/scripts/many_requests.py` on several ranks: one queue, a replica on each.
# 2. Quantize the model first: `minidist.compress.quantize_weights(model, bits=8)`. Is it faster
#    here?
# 3. Give `Engine(model, 8, blocks=..., block=16)` fewer and fewer blocks, and submit `asked`. When
#    do requests wait although a place is free?
#
# <details><summary>Answers</summary>
#
# 1. On two ranks all 24 requests are answered, and rank 0 sends 3 KB: tokens and no weights.
# 2. No: in three runs it had between 0.8 and 1.2 times as many tokens a second. The weights are
#    made floats again before each product.
# 3. With 40 blocks all eight still run at once. With 24 there are at most five, and all answers
#    take 192 steps in place of 96; with 8 at most two. Memory, not places, is then what they wait
#    for.
#
# </details>
