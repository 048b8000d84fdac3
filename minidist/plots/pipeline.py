"""Draw a pipeline: one row for each stage, and one cell for each computation of a microbatch.

``draw_price`` draws a predicted schedule from its price. ``draw_run`` draws a measured run from its
trace, in the same style, so that the two pictures can be compared.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from minidist import colours
from minidist.comm.trace import Event
from minidist.parallel.pipeline.instructions import (
    Backward,
    Forward,
    InputGradient,
    WeightGradient,
)
from minidist.parallel.pipeline.pricing import Price, Span

COLOURS: dict[type, str] = {
    Forward: colours.FORWARD,
    Backward: colours.BACKWARD,
    InputGradient: colours.INPUT_GRADIENT,
    WeightGradient: colours.WEIGHT_GRADIENT,
}
NAMES: dict[str, type] = {
    "forward": Forward,
    "backward": Backward,
    "input-gradient": InputGradient,
    "weight-gradient": WeightGradient,
}
_EVENT = re.compile(rf"({'|'.join(NAMES)}) (\d+)(?: chunk (\d+))?$")


def measured_spans(events: Sequence[Event]) -> list[Span]:
    """The computations of a pipeline step, from all events of a rank."""
    spans = []
    for event in events:
        found = _EVENT.match(event.name)
        if event.kind == "compute" and found:
            kind, microbatch, chunk = found.groups()
            instruction = NAMES[kind](int(microbatch), int(chunk or 0))
            spans.append(Span(instruction, event.start, event.end))
    return spans


def draw_price(axes: Any, price: Price, title: str = "") -> None:
    """Draw the predicted step of a schedule."""
    draw_spans(axes, price.spans, price.seconds, title)


def draw_run(axes: Any, timelines: Sequence[Sequence[Event]], title: str = "") -> None:
    """Draw one measured step of a pipeline, from the recorded events of its ranks."""
    spans = [measured_spans(events) for events in timelines]
    end = max((event.end for events in timelines for event in events), default=0.0)
    draw_spans(axes, spans, end, title)


def draw_spans(axes: Any, spans: Sequence[Sequence[Span]], seconds: float, title: str = "") -> None:
    """Cells on matplotlib ``axes``, stage 0 on top.

    The second chunk of a stage is paler, to distinguish the two sides of a V schedule.
    """
    longest = max((span.end - span.start for row in spans for span in row), default=0.0)
    for stage, row in enumerate(spans):
        for span in row:
            width = span.end - span.start
            if width <= 0:
                continue
            second = span.instruction.chunk % 2 == 1
            axes.broken_barh(
                [(span.start, width)],
                (stage - 0.44, 0.88),
                facecolors=COLOURS[type(span.instruction)],
                alpha=0.6 if second else 1.0,
                edgecolors="white",
                linewidth=0.6,
            )
            if width > 0.2 * longest:
                axes.text(
                    span.start + width / 2,
                    stage,
                    str(span.instruction.microbatch),
                    ha="center",
                    va="center_baseline",
                    fontsize=_font(axes, seconds, width),
                    color="black" if second else "white",
                    clip_on=True,
                )
    axes.set_facecolor(colours.IDLE)  # the background is idle time
    axes.set_xlim(0, max(seconds, 1e-12))
    axes.set_ylim(len(spans) - 0.5, -0.5)
    axes.set_yticks(range(len(spans)), [f"stage {stage}" for stage in range(len(spans))])
    axes.set_xticks([])
    axes.tick_params(length=0)
    for side in ("top", "right", "bottom", "left"):
        axes.spines[side].set_visible(False)
    axes.set_title(title, loc="left", fontsize=10)


def _font(axes: Any, seconds: float, width: float) -> float:
    """A font size at which two digits fit into a cell."""
    inches = axes.get_position().width * axes.figure.get_size_inches()[0] * width / seconds
    return max(3.0, min(8.0, 72 * inches / 1.5))


def legend(figure: Any, chunks: bool = False) -> None:
    """Explain the colours in one line under the figure, which must have a constrained layout."""
    from matplotlib.patches import Patch

    words = {
        Forward: "forward",
        Backward: "backward",
        InputGradient: "gradient of the input",
        WeightGradient: "gradient of the weights",
    }
    handles: list[Any] = [Patch(color=COLOURS[kind], label=text) for kind, text in words.items()]
    if chunks:
        handles.append(Patch(color=COLOURS[Forward], alpha=0.6, label="paler: second chunk"))
    handles.append(Patch(facecolor=colours.IDLE, edgecolor="#bbbbbb", label="idle"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
