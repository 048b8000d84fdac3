# %% [markdown]
# # 24. Data that stays where it is
#
# *Read this lesson after lesson 18.* Data is often spread over *clients*, such as telephones or
# hospitals, and may not leave them. So the model goes to the data: each client trains it and sends
# back what has changed. Does that work when the clients have different data? And whom does a client
# have to trust?
#
# About 35 minutes. At the end you know federated averaging, why skewed data makes it worse, how a
# server can add up numbers that it cannot read, and how many clients it takes to hide one.
#
# You need: lessons 7 and 18. `LESSON=long python lessons/24_federated.py` trains longer.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np

from minidist import LocalWorld, launch
from minidist.comm import first_process, launched_size, print_once
from minidist.data import fashion_mnist
from minidist.data.clients import by_dirichlet
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import SGD
from minidist.plots import save
from minidist.privacy import (
    FederatedAveraging,
    FedProx,
    FixedPoint,
    PrivateFederatedAveraging,
    SecureClient,
    SecureServer,
    epsilon_of,
)

LENGTH = os.environ.get("LESSON", "short")
ROUNDS = {"quick": 1, "short": 6, "long": 20}[LENGTH]
CLIENTS = 10
training, test = fashion_mnist()
everything = training.batch(np.arange(len(training)))

# %% [markdown]
# ## Federated averaging
#
# A step of SGD is little to send a gradient for. *Federated averaging* (McMahan et al. 2017) sends
# less often. In each round the server sends the model to some clients. Each trains it on its own
# data for a while and sends back what has changed. The server averages the changes, weighted by
# how many samples each client has.
#
# Below, ten clients share 10,000 images. A number α says how even the shares are: with α = 100 each
# client has some of all clothes; with α = 0.3 one has mostly boots, another mostly shirts.
#
# **Question 1.** Where does averaging work worse, and why?


# %%
def share_of(client, alpha):
    """How many images of each class a client has."""
    owned = by_dirichlet(training, CLIENTS, alpha, seed=0).samples(client)
    return np.bincount(np.asarray(training.targets)[owned], minlength=10)


def federated(kind, alpha, ranks=2, world=None, **options):
    """Accuracy after each round, of clients whose labels are skewed by alpha."""
    clients = by_dirichlet(training, CLIENTS, alpha, seed=0)

    def main(comm):
        method = kind(
            *(mlp((784, 64, 10)), CrossEntropy(), SGD(0.05), comm),
            clients=clients, fraction=0.5, epochs=2, local_batch=32, **options,
        )  # fmt: skip
        return [(method.step(everything), method.evaluate(test)[1])[1] for _ in range(ROUNDS)]

    return launch(main, ranks, world)


curves = {}
for name, alpha in (("nearly even, α = 100", 100.0), ("skewed, α = 0.3", 0.3)):
    curves[name] = federated(FederatedAveraging, alpha, world=LocalWorld())[0]
    print_once(f"{name:30} {curves[name][-1]:.1%} after {ROUNDS} rounds")
    print_once(f"    images of each class that client 0 has: {share_of(0, alpha)}")

# %% [markdown]
# Clients that see few classes pull the model towards these, and forget the others. The mean of such
# models is worse than that of clients who see everything.
#
# **Question 2.** *FedProx* (Li et al. 2020) ties each client to the model that it was given, by a
# spring of strength μ: the further a client moves away, the harder it is pulled back. Does it win
# back what the skew has cost?

# %%
name = "skewed, FedProx with μ = 0.1"
curves[name] = federated(FedProx, 0.3, world=LocalWorld(), mu=0.1)[0]
print_once(f"{name:30} {curves[name][-1]:.1%} after {ROUNDS} rounds")

# %% [markdown]
# Not here: the spring only slows the clients down. At α = 0.1 it gains about a point. The page
# [docs/federated.md](../docs/federated.md) has the accuracy against skew, with its spread.
#
# ## What does the server see?
#
# The data stay, but a change tells of the data: in lesson 18 an image was recovered from a
# gradient. The server needs only the *sum* of the changes.
#
# **Question 3.** Three people want to know the sum of their salaries, and nobody may learn a single
# one. How?
#
# Each pair agrees on a random number; one adds it, the other subtracts it. What each says is then
# random, and in the sum all the numbers cancel. This is *secure aggregation* (Bonawitz et al.
# 2017). Here each client has 20,000 numbers to send, as integers modulo $2^{32}$:

# %%
try:
    clients = [SecureClient(number) for number in range(4)]
except ImportError as error:  # pip install "minidist[privacy]"
    print_once(f"left out: {error}")
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
    print_once(f"the sum is off by {gap:.0e}: rounding to {fixed.bits} bits, and nothing else")

# %% [markdown]
# And if one of the four loses its connection after the keys were agreed on? The lost client's
# numbers do not cancel, so the server has noise. The round ends with an error, and the others begin
# again. Against what does this *not* help? A server that hands out its own keys in other
# people's names; clients that work together with the server; and what the sum itself tells.
#
# ## Hiding a whole client
#
# For the last one there is the noise of lesson 18, here for whole clients: limit the length of each
# client's change, and add noise once, to the sum (McMahan et al. 2018). What the accountant counts
# is then not an image more or less, but a client.
#
# **Question 4.** With ten clients, is there a noise that hides one of them and still lets the model
# learn?

# %%
private = federated(
    PrivateFederatedAveraging, 100.0, world=LocalWorld(), client_clip=1.0, noise=0.5
)[0]
epsilon = epsilon_of(0.5, 0.5, ROUNDS, 1e-2)
print_once(f"{CLIENTS} clients, noise 0.5: {private[-1]:.1%}, with ε = {epsilon:.0f} at δ = 0.01")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
for name, reached in (curves | {"even, private: noise 0.5": private}).items():
    left.plot(range(1, ROUNDS + 1), 100 * np.array(reached), marker=".", label=name)
left.set_xlabel("round")
left.set_ylabel("accuracy on test images, %")
left.legend(frameon=False, fontsize=8, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
if sent is not None:
    for values, name in ((own, "what a client has"), (sent, "what it sends")):
        right.hist(values.astype(np.float64), 64, range=(0, 2**32), histtype="step", label=name)
    right.set_yscale("log")
    right.set_xlabel("integers modulo 2³²")
    right.set_ylabel("how many")
    right.legend(frameon=False, fontsize=8)
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
if first_process():
    print(f"picture: {save(figure, 'out/lessons/24_federated.png')}")

# %% [markdown]
# ε promises next to nothing, and the accuracy is bad: each client is a tenth of the sum, and no
# noise hides a tenth and leaves the rest. Privacy for clients takes thousands of them. More
# clients, each drawn less often, make ε smaller *and* the noise on the mean smaller (S is the
# length to which changes are limited):

# %%
for count, fraction, noise in ((10, 0.5, 0.5), (1_000, 0.05, 1.0), (100_000, 0.01, 1.0)):
    spent = epsilon_of(fraction, noise, ROUNDS, 1 / count**1.1)
    sigma = noise / (fraction * count)
    print_once(
        f"{count:7,} clients, noise {noise}: ε = {spent:6.2f}, σ = {sigma:.5f} S on the mean"
    )

# %% [markdown]
# ## On real ranks
#
# So far every rank was simulated. The next lines run on the ranks that there are: four simulated
# ones under plain `python`, and real processes that send real messages under
#
#     minidist run -n 2 lessons/24_federated.py
#
# A rank plays some of the clients.
#
# **Question 5.** Must the accuracy depend on the number of ranks?

# %%
found = federated(FederatedAveraging, 100.0, ranks=4)
kind = "real" if launched_size() else "simulated"
print_once(f"{len(found)} {kind} ranks: {found[0][-1]:.1%} after {ROUNDS} rounds")

# %% [markdown]
# No: which clients take part, and the order of each one's samples, are drawn from the seed, the
# round and the client's number.
#
# ## What to take away
#
# 1. Federated averaging moves the training to the data, and sends once a round.
# 2. Clients with skewed data pull the model apart; a spring does not undo that.
# 3. What is sent still tells of the data. Secure sums hide each client's part of the sum; noise
#    hides what the sum tells.
# 4. Ten clients cannot hide one of them. The more clients there are, the less noise it takes.
#
# **Try it:**
#
# 1. Call `SecureFederatedAveraging(..., drops={3})`: what does each rank raise?
# 2. Give all clients one epoch, `local_batch=None` (all samples in one batch) and `fraction=1`, and
#    compare the parameters with those of `Serial` on the whole data. Why are they equal, even with
#    α = 0.3?
#
# <details><summary>Answers</summary>
#
# 1. `RoundEnded`, on every rank: client 3 dropped out after the keys were exchanged. "Begin again,
#    with new keys and the other clients".
# 2. Each client then makes one step from the same model: it sends the gradient of its own samples.
#    The mean, weighted by their numbers, is the gradient of the whole data. The largest difference
#    of a weight after three rounds was 1e-8.
#
# </details>
