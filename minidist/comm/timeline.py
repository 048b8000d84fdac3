"""What the ranks did, drawn: one row a rank, time to the right, computing and communicating.

``Timeline`` is a whole run: a picture with an arrow for every message, a file for Perfetto
(https://ui.perfetto.dev) or chrome://tracing, and totals. ``draw_timeline`` draws into any axes.
"""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minidist import colours
from minidist.comm.choices import recorded
from minidist.comm.trace import SENDING, Event, Trace, span, step_of

# What is drawn of a run whose steps have no colours of their own.
COLOURS = {
    "forward": colours.FORWARD,
    "backward": colours.BACKWARD,
    "optimizer": colours.OPTIMIZER,
    "other computing": colours.OTHER,
    "sending, receiving, waiting": colours.COMMUNICATION,
}
AXES = ("tensor", "pipeline", "data")  # of a mesh: the labels of its communicators
RECEIVING = ("recv", "wait recv", "sendrecv")
MANY = 3000  # arrows: more than this, and they hide the picture
READABLE = 120  # events of a rank that a picture has room for
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


class Timeline:
    """A recorded run of all ranks: ``Timeline(world.traces)``. Times begin at 0."""

    def __init__(self, traces: Sequence[Trace]) -> None:
        self.traces = traces
        aligned = [
            [
                replace(event, start=event.start + trace.offset, end=event.end + trace.offset)
                for event in trace.events
            ]
            for trace in traces
        ]
        begin, _ = span(aligned)
        self.events = [
            [replace(event, start=event.start - begin, end=event.end - begin) for event in events]
            for events in aligned
        ]

    def arrows(self) -> list[Arrow]:
        """An arrow for each message: the first send of a rank belongs to the first receive from it.

        Events have no tags: where tags make messages arrive in another order than they were sent,
        arrows are exchanged. What a stream receives from a rank's main communicator has no arrow.
        """
        sent: dict[tuple[int, int, bool], deque[Event]] = defaultdict(deque)
        for rank, events in enumerate(self.events):
            for event in events:
                if event.kind in SENDING:
                    sent[rank, event.peer, event.stream].append(event)
        found = []
        for rank, events in enumerate(self.events):
            for event in events:
                if event.kind in RECEIVING:
                    source = event.source if event.kind == "sendrecv" else event.peer
                    waiting = sent[source, rank, event.stream]
                    if waiting:
                        send = waiting.popleft()
                        # Clocks still differ a little: an arrow must not end before it begins.
                        end = max(send.start, event.end)
                        arrow = Arrow(source, rank, send.start, end, send.nbytes, event.stream)
                        found.append(arrow)
        return found

    def totals(self) -> list[dict[str, object]]:
        """Messages, bytes, computing seconds and FLOPs of every rank, and sending by step."""
        return [trace.totals() for trace in self.traces]

    def plot(self, path: str | Path | None = None, title: str = "") -> Any:
        """The timeline as a matplotlib figure, coloured by step; saved if there is a path.

        Of a long run, only the middle is drawn, and the title says so: see ``window``.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 1.6 + 0.5 * len(self.events)), dpi=110, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        window = self.window()
        if window is not None:
            (start, end), (_, whole) = window, span(self.events)
            unit, scale = unit_of(whole)
            part = f"{(end - start) * scale:.2f} from the middle of {whole * scale:.2f} {unit}"
            title = f"{title}: {part}"
        labelled = {event.name.split(" ")[0] for events in self.events for event in events}
        draw_timeline(
            axes,
            self.events,
            title.removeprefix(": "),
            self.arrows(),
            steps=True,
            window=window,
            axes_of_mesh=bool(labelled & set(AXES)),
        )
        axes.spines[["top", "right"]].set_visible(False)
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path)
        return figure

    def window(self, readable: int = READABLE) -> tuple[float, float] | None:
        """From when to when a picture should show: about ``readable`` events of each rank.

        From the middle of the run, where a training loop repeats its steps; at the start there is
        set-up, and at the end evaluation. None if the picture has room for the whole run.
        """
        ordered = sorted((e for events in self.events for e in events), key=lambda e: e.start)
        count = readable * len(self.events)
        if len(ordered) <= count:
            return None
        first = (len(ordered) - count) // 2
        return ordered[first].start, ordered[first + count].start

    def save(self, path: str | Path) -> Path:
        """Write the run as Chrome trace events, which Perfetto opens; returns the path.

        ``otherData`` has the algorithms that "auto" took: see choices.py.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        algorithms = recorded(trace.choices for trace in self.traces)
        whole = {"traceEvents": list(self._chrome()), "displayTimeUnit": "ms"}
        path.write_text(json.dumps(whole | {"otherData": {"algorithms": algorithms}}))
        return path

    def _chrome(self) -> Iterator[dict[str, Any]]:
        """A process a rank, with a thread for its work and one for its stream; times in µs."""
        for rank, events in enumerate(self.events):
            names = [("process_name", 0, f"rank {rank}")]
            if any(event.stream for event in events):
                names += [("thread_name", 0, "work"), ("thread_name", 1, "communication stream")]
            for what, thread, name in names:
                yield {"ph": "M", "pid": rank, "tid": thread, "name": what, "args": {"name": name}}
            for event in events:
                yield {
                    "ph": "X",
                    "pid": rank,
                    "tid": int(event.stream),
                    "name": event.name or event.kind,
                    "cat": event.kind,
                    "ts": event.start * 1e6,
                    "dur": (event.end - event.start) * 1e6,
                    "args": {
                        "kind": event.kind,
                        "bytes": event.nbytes,
                        "peer": event.peer,
                        "flops": event.flops,
                    },
                }
        for number, arrow in enumerate(self.arrows()):
            flow = {"cat": "message", "name": f"{arrow.nbytes} bytes", "id": number}
            flow["tid"] = int(arrow.stream)  # the thread whose bars it joins
            yield flow | {"ph": "s", "pid": arrow.sender, "ts": arrow.start * 1e6}
            yield flow | {"ph": "f", "bp": "e", "pid": arrow.receiver, "ts": arrow.end * 1e6}


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
