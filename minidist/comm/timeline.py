"""A picture of what the ranks did: a row a rank, time to the right, computing and communicating.

``Timeline`` is a whole run: a picture with an arrow for every message, a file for Perfetto
(https://ui.perfetto.dev) or chrome://tracing, and totals. The drawing itself is in drawing.py.
"""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from minidist.comm.choices import recorded
from minidist.comm.drawing import AXES, Arrow, draw_timeline, unit_of
from minidist.comm.trace import SENDING, Event, Trace, span, step_of

__all__ = ["Arrow", "Timeline", "draw_timeline", "step_of"]

RECEIVING = ("recv", "wait recv", "sendrecv")
READABLE = 120  # events of a rank that a picture has room for


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
        """An arrow for each message: a rank's first send to a peer goes to the first receive there.

        Events have no tags, so if tags let messages arrive in another order than they were sent,
        their arrows are exchanged. What a stream receives from a rank's main communicator has no
        arrow.
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
