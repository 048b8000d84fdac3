# %% [markdown]
# # 23. Attention: a text, letter by letter
#
# *Read this lesson after lesson 4.* A language model reads some letters, and says which comes next.
# Its new layer is *attention*: each position chooses the earlier positions from which it reads. You
# compute one by hand; then a small GPT learns from Shakespeare, and writes.
#
# About 25 minutes. At the end you know what queries, keys and values are, why a position must not
# read the ones after it, what a loss of two nats means, and how a model of the next letter writes.
#
# You need: lessons 1 to 4. Run it with `python lessons/23_attention.py`; it trains for a minute or
# two. With `LESSON=long` in front (in bash) it trains longer, and reaches less than 1.8 nats a
# letter.

# %%
import os
import textwrap
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
from rich import print as show

import minidist as md
from minidist import models, nn, ops
from minidist.compress import fit
from minidist.data import Batches, shakespeare, token_windows
from minidist.inspect import metrics, summary
from minidist.plots import save


@dataclass
class Size:
    steps: int
    context: int
    width: int
    layers: int


size = {
    "quick": Size(steps=6, context=16, width=16, layers=1),
    "short": Size(steps=700, context=64, width=96, layers=3),
    "long": Size(steps=2000, context=128, width=128, layers=4),
}[os.environ.get("LESSON", "short")]

# %% [markdown]
# ## Attention, by hand
#
# A linear layer treats each letter of a text alone. But what comes after "q" or after "th" depends
# on what was before. So each position gets three short rows of numbers (*vectors*):
#
# - its **query** says what it looks for;
# - its **key** says what it is, to those who look;
# - its **value** is what they read if they find it.
#
# Compare a query with a key by their product: multiply number by number, and add up. A large
# product means "this is what I look for". *Softmax* makes weights of these *scores*: all are
# positive, they add up to 1, and the largest score gets most of it. The result is the mean of the
# values with these weights.
#
# Take the letters h, a, m. A key is (vowel, consonant), and a value is the letter's place in the
# alphabet: 8, 1, 13. The last position looks for vowels: its query is (4, 0).
#
# **Question 1.** What does it read, about: 1, 8, 13, or the mean of all, 7.3?


# %%
def softmax(scores):
    powers = np.exp(scores)
    return powers / powers.sum(axis=-1, keepdims=True)


query = np.array([4.0, 0.0])
keys = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])  # h, a, m
values = np.array([8.0, 1.0, 13.0])
scores = keys @ query / np.sqrt(2)
weights = softmax(scores)
print(f"scores {scores.round(2)}, weights {weights.round(2)}: it reads {weights @ values:.2f}")

# %% [markdown]
# Near 1, the value of the a, with a little of the others: softmax gives no letter exactly 0. (The
# scores are divided by $\sqrt d$, where $d$ is the length of a key, here 2. Sums of more products
# are larger, and softmax would otherwise give nearly everything to one position.)
#
# ## All positions at once
#
# In training the model predicts the next letter at *every* position of a text at once. So a
# position must not read the ones after it: they contain the answer. Their scores are set to
# $-\infty$, which softmax makes 0. This is the *causal mask*:
#
# $$\mathrm{attention}(Q, K, V) = \mathrm{softmax}\left(Q K^T / \sqrt d + \text{mask}\right) V$$
#
# with one row for each position in $Q$, $K$ and $V$. **Question 2.** In "hamlet" every position
# looks for vowels. What are the weights of the first position, and which two weights of the last
# one are the largest?

# %%
word = "hamlet"
vowel = np.array([letter in "aeiou" for letter in word], float)
K = np.stack([vowel, 1 - vowel], axis=1)  # (6, 2)
Q = np.tile(query, (6, 1))  # (6, 2)
place = np.array([ord(letter) - ord("a") + 1.0 for letter in word])
V = np.stack([place, vowel], axis=1)  # (6, 2): a value of two numbers
mask = np.where(np.tri(6), 0, -np.inf)  # row: who reads, column: what is read
W = softmax(Q @ K.T / np.sqrt(2) + mask)  # (6, 2) @ (2, 6) = (6, 6)
print(f"{W.round(2)}\nthe last position reads {(W @ V)[-1].round(2)}")
layer = ops.attention(*(md.Tensor(rows[None, None]) for rows in (Q, K, V)))
assert np.allclose(layer.data[0, 0], W @ V)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
for reader, letter in enumerate(word):
    for height in (0, 1):
        left.text(reader, height, letter, ha="center", va="center", fontsize=16)
    for source in range(reader + 1):
        left.plot([reader, source], [0.9, 0.1], color="#1f618d", lw=6 * W[reader, source])
left.text(-0.6, 1, "reads", ha="right", va="center")
left.text(-0.6, 0, "is read", ha="right", va="center")
left.set(xlim=(-1.5, 5.5), ylim=(-0.25, 1.25), title="every position looks for vowels")
left.axis("off")
right.imshow(W, cmap="Blues", vmin=0, vmax=1.3)
for (row, column), weight in np.ndenumerate(W):
    text = f"{weight:.2f}" if column <= row else "masked"
    right.text(column, row, text, ha="center", va="center", fontsize=9 if column <= row else 7)
right.set_xticks(range(6), word)
right.set_yticks(range(6), word)
right.set(title="the weights: a row adds up to 1", xlabel="is read", ylabel="reads")
print("picture:", save(figure, "out/lessons/23_attention.png"))

# %% [markdown]
# The first position can only read itself. The last one reads a and e, each with nearly half of the
# weight, so about the mean of 1 and 5.
#
# ## A GPT
#
# In a network queries, keys and values are not chosen: three matrices compute them from a vector
# for each position, and training finds the matrices. Several *heads* do this beside each other,
# each with matrices of its own: one may look for vowels, another for the last space.
#
# A GPT is built from three kinds of blocks:
#
# - **embed**: a vector for each letter, plus a vector for each position. Without the second, "ham"
#   and "ahm" would look the same to attention;
# - **block**, several times: attention, then two linear layers at each position alone. Each adds
#   its result to the vectors that came in;
# - **head**: from each vector a score for each letter that may come next.

# %%
BATCH = 16
text_train, text_test = shakespeare(size.context, stride=1)
gpt = models.gpt(text_train.classes, size.context, size.width, size.layers, heads=4).init(seed=0)
show(summary(gpt, (BATCH, size.context)))

# %% [markdown]
# ## Two nats
#
# The loss is the cross-entropy of lesson 2: minus the logarithm of the probability that the model
# gave to the letter that came. Its unit is the *nat*. With a loss of $\ell$ nats a model is as
# unsure as a choice among $e^\ell$ equally likely letters: its *perplexity*.
#
# **Question 3.** There are 63 letters and signs. What are the perplexity and the loss of a model
# that finds all equally likely? And how far does one come without a network, by counting which
# letter follows which?

# %%
tokens, exam = text_train.inputs.tokens, text_test.inputs.tokens  # the last tenth is for the test
letters = text_train.classes
single = np.bincount(tokens, minlength=letters) + 1.0
pairs = np.ones((letters, letters))
np.add.at(pairs, (tokens[:-1], tokens[1:]), 1)
baselines = {
    "any letter": np.log(letters),
    "by frequency": -np.log(single / single.sum())[exam].mean(),
    "by the one before": -np.log(pairs / pairs.sum(1, keepdims=True))[exam[:-1], exam[1:]].mean(),
}
for name, nats in baselines.items():
    print(f"{name:21} {nats:.2f} nats, perplexity {metrics.perplexity(nats):5.1f}")

# %% [markdown]
# Perplexity 63, loss ln 63 = 4.14. Pairs of letters come to 2.45 nats, a choice among 11.5 letters:
# a network must do better.
#
# ## Training and writing
#
# `minidist.compress.fit` is the loop of lesson 4, with two more steps. *Clipping* scales an
# unusually large gradient down. *Weight decay* makes all weights a little smaller in each step
# (Adam with it is called AdamW).
#
# To write, take the scores at the last position, draw a letter by their softmax, append it, and
# repeat. The *temperature* divides the scores first. (`sample` keeps keys and values of earlier
# letters in a *cache*, so that a new letter is one position's work. Lesson 15 is about it.)

# %%
cross_entropy, prompt = nn.CrossEntropy(), "HAMLET:\n"
# The whole test text has 126,000 letters; during training, every tenth window is enough.
some = token_windows("some of it", exam, size.context, letters, stride=10 * size.context)
history, writings = [], []


def write(count, temperature=0.8, seed=1):
    """Continue the prompt with letters that the model finds likely."""
    drawn = models.sample(gpt, text_train.encode(prompt), count, temperature, seed=seed)
    return text_train.decode(drawn)


def watch(step, steps, loss):
    if step == 1 or step % (steps // 6) == 0:
        held_out = metrics.mean_loss(gpt, cross_entropy, some, chunk=32)
        history.append((step, loss, held_out))
        writings.append(write(120))
        print(f"step {step:4}: loss {loss:.3f}, on the test text {held_out:.3f} nats")


fit(gpt, Batches(text_train, BATCH), size.steps, lr=2e-3, progress=watch)
held_out = metrics.mean_loss(gpt, cross_entropy, text_test, chunk=32)
print(f"whole test text: {held_out:.3f} nats, perplexity {metrics.perplexity(held_out):.1f}")

# %% [markdown]
# **Question 4.** Temperature 0.2 makes likely letters more likely, temperature 2 less. Which of the
# three texts has the most words that exist, and which repeats itself?

# %%
for temperature in (0.2, 0.8, 2.0):
    print(f"── temperature {temperature}\n{write(200, temperature)}\n")

# %% [markdown]
# At 0.2 nearly all words exist, and the same ones come again and again. At 2 hardly any word
# exists. Between the two, the model is at its most interesting.

# %%
figure = plt.figure(figsize=(13, 4.6), layout="constrained")
curve, page = figure.subplots(1, 2, width_ratios=[1, 1.25])
steps, losses, watched = zip(*history, strict=True)
curve.plot(steps, losses, "o--", color="0.6", label="training batch", ms=4)
curve.plot(steps, watched, "o-", color="#1f618d", label="test text", ms=5, lw=2)
for name, nats in baselines.items():
    curve.axhline(nats, color="#b9770e", lw=1, ls=":")
    curve.text(steps[-1], nats + 0.03, name, ha="right", color="#b9770e", fontsize=9)
curve.set(xlabel="step", ylabel="nats a letter")
curve.set_title(f"test text: {held_out:.2f} nats, perplexity {metrics.perplexity(held_out):.1f}")
curve.legend(frameon=False, loc="upper right", bbox_to_anchor=(1, 0.9))
curve.spines[["top", "right"]].set_visible(False)
lines = []
for at in (0, len(writings) // 3, -1):
    text = writings[at] if at != -1 else write(400)
    wrapped = [part for line in text.split("\n") for part in (textwrap.wrap(line, 72) or [""])]
    lines += [f"── after {steps[at]} steps " + "─" * 52, *wrapped[: 4 if at != -1 else 11], ""]
page.text(0, 1, "\n".join(lines), family="monospace", fontsize=9.5, va="top")
page.axis("off")
print("picture:", save(figure, "out/lessons/23_characters.png"))

# %% [markdown]
# ## What to take away
#
# 1. Attention is a weighted mean of values. The weights say how well each key fits the query.
# 2. A causal mask hides later positions, so that all positions can be trained at once.
# 3. A loss in nats is a number of equally likely choices: $e^\ell$.
#
# **Try it:**
#
# 1. In `word`, exchange two letters before the last: "ahmlet". Does the last position read another
#    value? Which part of a GPT does know the order of letters?
# 2. Make the query (8, 0), and (0, 0). What does the last position read?
# 3. Write with temperature 0. Why does it always write the same, whatever the seed?
#
# <details><summary>Answers</summary>
#
# 1. No: 4.08 with both. A weight goes with a letter, wherever it is. In a GPT the vector of its
#    position is added to that of each letter, so that both key and query can depend on it.
# 2. With (8, 0) it reads 3.07: the larger the scores, the less is left for the consonants. With (0,
#    0) all scores are equal, so it reads the mean of all six letters, 9.83.
# 3. It always takes the likeliest letter, and draws nothing. After the short training it writes "I
#    the the the the", and goes on like that.
#
# </details>
#
# Next: `05_messages.py`. Language models come again in lessons 14 (smaller), 15 (many requests) and
# 19 (what attention looks at).
