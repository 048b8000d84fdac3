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
    """Both halves of the backward of a microbatch, mixed layer by layer."""

    microbatch: int
    chunk: int = 0


@dataclass(frozen=True)
class InputGradient:
    """Backward of a microbatch, but for the weights: what the previous stage waits for."""

    microbatch: int
    chunk: int = 0


@dataclass(frozen=True)
class WeightGradient:
    """What ``InputGradient`` left: the gradients of the weights."""

    microbatch: int
    chunk: int = 0


@dataclass(frozen=True)
class Post:
    """Make a buffer ready for a message, which may then come while the stage computes."""

    what: str
    microbatch: int
    peer: int
    part: int


@dataclass(frozen=True)
class Recv:
    """Wait for a message: ``what`` ("activation", "gradient" or "loss") from stage ``peer``.

    ``part`` is the part of the model whose input, or whose input's gradient, it is.
    """

    what: str
    microbatch: int
    peer: int
    part: int


@dataclass(frozen=True)
class Send:
    """Start to send ``what`` of a microbatch to stage ``peer``, and go on at once."""

    what: str
    microbatch: int
    peer: int
    part: int


@dataclass(frozen=True)
class Reduce:
    """Add up over ranks that hold the same parameters.

    "replicas": a chunk's gradients, over the copies of this pipeline, while the stage goes on.
    "tied": the gradients of parameters that several stages share. "norm": the squared norms of
    the stages' gradients, to clip by. "loss": of all copies.
    """

    what: str
    chunk: int = 0


@dataclass(frozen=True)
class Step:
    """The optimizer's step."""


Compute = Forward | Backward | InputGradient | WeightGradient
Instruction = Compute | Post | Recv | Send | Reduce | Step
COMPUTE = (Forward, Backward, InputGradient, WeightGradient)
