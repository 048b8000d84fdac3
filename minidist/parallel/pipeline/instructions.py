"""Instructions: what a pipeline's stage can do, as data.

A program is a list of these. Four readers share it: ``prover.py`` proves that it can run,
``tally.py`` and ``pricing.py`` predict its cost, ``executor.py`` runs it, and
``minidist.plots.pipeline`` draws it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Forward:
    """Run a chunk's layers on a microbatch (and the loss, in the model's last part)."""

    microbatch: int
    chunk: int = 0


@dataclass(frozen=True)
class Backward:
    """The whole backward of a microbatch: gradients of inputs and weights, layer by layer."""

    microbatch: int
    chunk: int = 0


@dataclass(frozen=True)
class InputGradient:
    """The gradient of a microbatch's input only; the previous stage waits for it."""

    microbatch: int
    chunk: int = 0


@dataclass(frozen=True)
class WeightGradient:
    """The gradients of the weights, which ``InputGradient`` left out."""

    microbatch: int
    chunk: int = 0


@dataclass(frozen=True)
class Post:
    """Post a receive, so that the message can arrive while the stage computes."""

    what: str
    microbatch: int
    peer: int
    part: int


@dataclass(frozen=True)
class Recv:
    """Wait for ``what`` ("activation", "gradient" or "loss") of a microbatch from stage ``peer``.

    The message is the input of the model's part ``part``, or the gradient of this input.
    """

    what: str
    microbatch: int
    peer: int
    part: int


@dataclass(frozen=True)
class Send:
    """Start to send ``what`` of a microbatch to stage ``peer``, without waiting."""

    what: str
    microbatch: int
    peer: int
    part: int


@dataclass(frozen=True)
class Reduce:
    """Sum over several ranks. ``what``:

    "replicas": a chunk's gradients, over this stage's replicas, while the stage continues.
    "tied": the gradients of parameters that several stages share. "norm": the squared norms of
    the stages' gradients, for clipping. "loss": the replicas' losses.
    """

    what: str
    chunk: int = 0


@dataclass(frozen=True)
class Step:
    """The optimizer's step."""


Compute = Forward | Backward | InputGradient | WeightGradient
Instruction = Compute | Post | Recv | Send | Reduce | Step
COMPUTE = (Forward, Backward, InputGradient, WeightGradient)
