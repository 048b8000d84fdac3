"""Draw what the ranks did: one row a rank, time to the right, computing and communicating."""

from __future__ import annotations

from typing import Any

from minidist.comm.trace import Event, span

# By what the step's name begins with, then by the kind of event.
COLOURS = {
    "forward": "#4c9f70",
    "backward": "#2f6690",
    "optimizer": "#b5838d",
    "other computing": "#9aa5b1",
    "sending, receiving, waiting": "#f2a65a",
}


def colour(event: Event) -> str:
    """An event's colour, as ``COLOURS`` says."""
    if event.kind != "compute":
        return COLOURS["sending, receiving, waiting"]
    return COLOURS.get(event.name.split(" ")[0], COLOURS["other computing"])


def draw_timeline(axes: Any, timelines: list[list[Event]], title: str = "") -> None:
    """Draw each rank's events on matplotlib ``axes``, rank 0 on top.

    Broad bars compute; thin ones send, receive or wait for a message.
    """
    start, end = span(timelines)
    unit, scale = ("ms", 1e3) if end - start < 1 else ("s", 1.0)
    for rank, events in enumerate(timelines):
        for height, computing in ((0.8, True), (0.16, False)):
            part = [event for event in events if (event.kind == "compute") == computing]
            axes.broken_barh(
                [
                    ((event.start - start) * scale, (event.end - event.start) * scale)
                    for event in part
                ],
                (rank - height / 2, height),
                facecolors=[colour(event) for event in part],
            )
    axes.set_ylim(len(timelines) - 0.4, -0.6)
    axes.set_yticks(range(len(timelines)), [f"rank {rank}" for rank in range(len(timelines))])
    axes.set_xlim(0, max((end - start) * scale, 1e-12))
    axes.set_xlabel(unit)
    axes.set_title(title, loc="left")
