"""Events of ranks drawn into matplotlib axes: a row a rank, time to the right.

``draw_timeline`` draws; the functions before it choose the colours: by what is done, by step, or by
axis of a mesh. A whole run is drawn by ``Timeline.plot``: see timeline.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from minidist import colours
from minidist.comm.trace import Event, span, step_of

# What is drawn of a run whose steps have no colours of their own.
COLOURS = {
    "forward": colours.FORWARD,
    "backward": colours.BACKWARD,
    "optimizer": colours.OPTIMIZER,
    "other computing": colours.OTHER,
    "sending, receiving, waiting": colours.COMMUNICATION,
}
AXES = ("tensor", "pipeline", "data")  # of a mesh: the labels of its communicators
MANY = 3000  # arrows: more than this, and they hide the picture
THIN = 3  # pixels: the white edges of a bar that is thinner would hide it


@dataclass(frozen=True)
class Arrow:
    """A message: when the sender began to send it, and when the receiver had it.

    ``stream``: from a communication stream to another.
    """

    sender: int
    receiver: int
    start: float
    end: float
    nbytes: int
    stream: bool = False


def colour(event: Event) -> str:
    """An event's colour, as ``COLOURS`` says."""
    if event.kind not in ("compute", "reduce"):
        return COLOURS["sending, receiving, waiting"]
    word = event.name.split(" ")[0]
    if word in ("input-gradient", "weight-gradient"):  # the two halves of a backward
        word = "backward"
    return COLOURS.get(word, COLOURS["other computing"])


def palette_of(names: Iterable[str]) -> dict[str, str]:
    """A colour for each step: what has one in ``colours.STEPS`` keeps it, the others differ."""
    known = {name: colours.STEPS.get(name.split(" ")[0]) for name in names}
    others = [name for name, found in known.items() if found is None]
    return {name: found or colours.series(others.index(name)) for name, found in known.items()}


def axis_of(event: Event) -> str:
    """What an event is in a mesh: a kind of computing, or the axis along which it communicates."""
    first = event.name.split(" ")[0]
    if event.kind in ("compute", "reduce"):
        if first in ("forward", "backward", "input-gradient", "weight-gradient", "optimizer"):
            return first
        return "adding up" if "reduce" in event.name else "other computing"
    if first in AXES:
        return f"{first} axis"
    return "pipeline axis" if first in ("send", "receive") else "waiting"


def unit_of(seconds: float) -> tuple[str, float]:
    """The largest unit of which ``seconds`` are at least 1, and how many of it make a second."""
    units = (("s", 1.0), ("ms", 1e3))
    return next(((u, scale) for u, scale in units if seconds * scale >= 1), ("µs", 1e6))


def draw_timeline(
    axes: Any,
    timelines: list[list[Event]],
    title: str = "",
    arrows: Sequence[Arrow] = (),
    steps: bool = False,
    legend: str = "below",
    window: tuple[float, float] | None = None,
    axes_of_mesh: bool = False,
) -> None:
    """Draw each rank's events on matplotlib ``axes``, rank 0 on top.

    Broad bars compute; thin ones send, receive or wait for a message. ``arrows`` are messages,
    drawn if they are not too many. ``steps`` gives a colour to each step instead, and a legend:
    "below" or "right" of the picture: then pale bars communicate and full ones compute, and a
    communication stream has the lower half of its rank's row. ``window``: from when to when to
    draw, instead of everything. ``axes_of_mesh``: a colour to each axis of a mesh, not each step.
    """
    from matplotlib.patches import Patch

    name_of = axis_of if axes_of_mesh else step_of

    start, end = window or span(timelines)
    if window is not None:
        timelines = [[e for e in events if e.end > start and e.start < end] for events in timelines]
        arrows = [arrow for arrow in arrows if start <= arrow.start and arrow.end <= end]
    unit, scale = unit_of(end - start)
    names = dict.fromkeys(
        name_of(event)
        for events in timelines
        for event in events
        if (event.kind != "compute" or event.name) and event.end > event.start
    )
    palette = palette_of(names)
    thin = THIN * (end - start) / max(1.0, axes.get_window_extent().width)  # in seconds
    halves = steps and any(event.stream for events in timelines for event in events)
    for rank, events in enumerate(timelines):
        for computing, stream in ((True, False), (False, False), (True, True), (False, True)):
            part = [
                e
                for e in events
                if (e.kind in ("compute", "reduce")) == computing and e.stream == stream
            ]
            middle, height = float(rank), 0.8 if computing else 0.56 if steps else 0.16
            if halves:
                middle, height = rank + (0.2 if stream else -0.2), height / 2
            faces = [
                palette.get(name_of(e), COLOURS["other computing"]) if steps else colour(e)
                for e in part
            ]
            axes.broken_barh(
                [((e.start - start) * scale, (e.end - e.start) * scale) for e in part],
                (middle - height / 2, height),
                facecolors=faces,
                alpha=0.45 if steps and not computing else 1.0,
                edgecolors="white" if steps else "none",
                linewidth=[0.4 * (steps and e.end - e.start > thin) for e in part] or 0,
            )
    for arrow in arrows if len(arrows) <= MANY else ():
        down = 0.28 if arrow.receiver > arrow.sender else -0.28
        axes.annotate(
            "",
            xy=((arrow.end - start) * scale, arrow.receiver - down),
            xytext=((arrow.start - start) * scale, arrow.sender + down),
            arrowprops={
                "arrowstyle": "-|>",
                "mutation_scale": 7,
                "linewidth": 0.7,
                "color": "#333333",
                "alpha": 0.6,
            },
        )
    if steps and palette:
        below = {"loc": "upper center", "ncols": 6}
        below["bbox_to_anchor"] = (0.5, -0.12 - 0.5 / max(1, len(timelines)))
        right = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
        axes.legend(
            handles=[Patch(color=face, label=name) for name, face in palette.items()],
            frameon=False,
            **(right if legend == "right" else below),
        )
    axes.set_ylim(len(timelines) - 0.4, -0.6)
    axes.set_yticks(range(len(timelines)), [f"rank {rank}" for rank in range(len(timelines))])
    axes.set_xlim(0, max((end - start) * scale, 1e-12))
    axes.set_xlabel(unit)
    axes.set_title(title, loc="left")
