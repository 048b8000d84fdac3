"""What has which colour, in every picture: one table, so that no picture says otherwise.

It imports nothing, since pictures are drawn in many packages, from ``comm/timeline.py`` to
``compare/picture.py``. A colour means one thing: those of ``SERIES`` are in no other table.
"""

from __future__ import annotations

# What a rank does with its time.
FORWARD, BACKWARD, OPTIMIZER = "#4c9f70", "#2f6690", "#b5838d"  # green, blue, mauve
INPUT_GRADIENT, WEIGHT_GRADIENT = "#5b94c4", "#7b5ea7"  # the two halves of a backward: blue, violet
OTHER, COMMUNICATION, IDLE = "#9aa5b1", "#f2a65a", "#f1f1ee"  # grey, orange, nearly white

STEPS = {  # by the first word of a step's name
    "forward": FORWARD,
    "backward": BACKWARD,
    "input-gradient": INPUT_GRADIENT,
    "weight-gradient": WEIGHT_GRADIENT,
    "optimizer": OPTIMIZER,
    "wait": COMMUNICATION,
    "waiting": COMMUNICATION,
}

# What a rank holds in memory. The optimizer's state has the colour of its step.
MEMORY = {
    "parameters": "#6b4f3f",
    "gradients": "#c9a66b",
    "optimizer": OPTIMIZER,
    "activations": "#7fb7be",
}

# Curves, peers, methods, and steps with names of their own: what only differs.
SERIES = (
    *("#c8553d", "#3d2c8d", "#b08900", "#00796b", "#d05f9d", "#6b705c"),
    *("#8bb33d", "#5c9ead", "#a0522d", "#7d7abc", "#e0be36", "#1d1d1d"),
)


def series(index: int) -> str:
    """The colour of the curve of this number; after twelve they come again."""
    return SERIES[index % len(SERIES)]
