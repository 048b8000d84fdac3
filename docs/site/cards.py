"""A card for each method, and the table that leads to them: from docstrings and methods.toml.

A card has the drawing and the formulas of the method's docstring, what ``docs/methods.toml`` says
on when to use it, what it refuses, its rows in ``minidist compare``, and links to lesson and file.
"""

from __future__ import annotations

import inspect
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from docs.site.plain import escape, to_rst
from minidist.parallel.method import Method
from minidist.parallel.pipeline.schedules import SCHEDULES
from minidist.parallel.variants import METHODS, SEQUENCE_METHODS
from minidist.privacy.variants import PRIVATE_METHODS

DOCS = Path(__file__).parents[1]
ROWS: dict[str, Callable[..., Method]] = METHODS | SEQUENCE_METHODS | PRIVATE_METHODS
Entry = dict[str, Any]


def entries() -> dict[str, Entry]:
    """Raises ValueError if a row has no card, or two."""
    found: dict[str, Entry] = tomllib.loads((DOCS / "methods.toml").read_text())
    named = sorted(row for entry in found.values() for row in entry["rows"])
    if named != sorted(ROWS):
        wrong = sorted(set(named) ^ set(ROWS)) or "a row that stands twice"
        raise ValueError(f"docs/methods.toml and the rows of compare differ in {wrong}")
    return found


def write(folder: Path) -> None:
    """All cards as ``folder/cards/NAME.rst``, and the chooser's table as ``folder/chooser.txt``."""
    (folder / "cards").mkdir(parents=True, exist_ok=True)
    found = entries()
    for name, entry in found.items():
        (folder / "cards" / f"{name}.rst").write_text("\n".join(card(name, entry)) + "\n")
        draw_schedule(entry, folder / "cards")
    (folder / "chooser.txt").write_text("\n".join(chooser(found)) + "\n")


def card(name: str, entry: Entry) -> Iterator[str]:
    made = ROWS[entry["rows"][0]]
    method = made.func if isinstance(made, partial) else made
    yield from heading(entry["title"], "=")
    yield f"**An answer to** {entry['answers']}."
    yield ""
    yield from (f"**When**: {entry['when']}", "", f"**When not**: {entry['not']}", "")
    yield "**Its parameters**: " + (
        "equal to those of serial training, up to rounding."
        if method.exact
        else "not those of serial training."
    )
    yield ""
    pieces = list(docstrings(made, entry))
    if "function" in entry:
        yield from (f".. image:: {entry['function']}.png", f"   :alt: {entry['title']}", "")
    for number, (title, text) in enumerate(pieces):
        if number and title:
            yield from heading(title, "-")
        yield from (*to_rst(inspect.cleandoc(text).split("\n")), "")
    if method.refuses:
        yield from heading("What it refuses", "-")
        for what, why in method.refuses.items():
            yield f"- {escape(what)}: {escape(why)}"
        yield ""
    yield from heading("Use it", "-")
    yield ".. code-block:: text"
    yield ""
    for row in entry["rows"]:
        yield f"   {row:32} {call(ROWS[row])}"
    yield ""
    yield f"Beside serial training: ``minidist compare --methods serial,{','.join(entry['rows'])}``"
    yield ""
    module = sys.modules[method.__module__]
    yield f"- File: {source(module.__name__)}"
    if "lesson" in entry:
        yield f"- Lesson: :doc:`/lessons/{entry['lesson']}`"
    yield f"- Program to copy from: :download:`/lessons/scripts/{entry['script']}.py`"


def docstrings(made: Callable[..., Method], entry: Entry) -> Iterator[tuple[str, str]]:
    """(title, text): the nearest to the row first, then the module's that explains it."""
    settings = made.keywords if isinstance(made, partial) else {}
    method = made.func if isinstance(made, partial) else made
    module = sys.modules[method.__module__]
    own = None
    if "function" in entry:
        own = SCHEDULES[settings["schedule"]].order
    elif "compressor" in settings:
        own = settings["compressor"]
    while isinstance(own, partial):
        own = own.func
    if own is not None:
        inner = sys.modules[own.__module__]
        yield "", str(own.__doc__)
        yield f"All in {inner.__name__}", str(inner.__doc__)
    else:
        if sum(one.__module__ == method.__module__ for one in classes()) > 1:
            yield "", str(method.__doc__)  # the module has several: which one is this
        yield "", str(module.__doc__)
    if "also" in entry:
        yield "What it is built on", str(sys.modules[entry["also"]].__doc__)
    if own is not None:
        yield "The method that uses it", str(module.__doc__)


def classes() -> set[type[Method]]:
    return {made.func if isinstance(made, partial) else made for made in ROWS.values()}  # type: ignore[misc]


def call(made: Callable[..., Method]) -> str:
    """How a row is made, as one would write it."""
    if not isinstance(made, partial):
        return f"{made.__name__}(model, loss, optimizer, comm)"
    given = ", ".join(f"{name}={_short(value)}" for name, value in made.keywords.items())
    return f"{made.func.__name__}(model, loss, optimizer, comm, {given})"


def _short(value: Any) -> str:
    if isinstance(value, partial):
        return f"partial({', '.join([_short(value.func), *map(repr, value.args)])})"
    return getattr(value, "__name__", None) or repr(value)


def source(module: str) -> str:
    """A link to the page that shows a module's text."""
    return f"`{module} <../../../_modules/{module.replace('.', '/')}.html>`__"


def chooser(found: dict[str, Entry]) -> Iterator[str]:
    """A table sorted by what does not fit, in the order of methods.toml."""
    yield "| what does not fit | method | when | equal to serial |"
    yield "|---|---|---|---|"
    for answers in dict.fromkeys(entry["answers"] for entry in found.values()):
        first = answers
        for name, entry in found.items():
            if entry["answers"] == answers:
                made = ROWS[entry["rows"][0]]
                exact = (made.func if isinstance(made, partial) else made).exact
                yield (
                    f"| {first} | [{entry['title']}](generated/cards/{name}.rst) "
                    f"| {entry['when']} | {'yes' if exact else 'no'} |"
                )
                first = ""


def draw_schedule(entry: Entry, folder: Path) -> None:
    """The picture of a pipeline's schedule: 4 stages, 8 microbatches."""
    if "function" not in entry:
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from minidist.parallel.pipeline.pricing import price_units
    from minidist.plots.pipeline import draw_price, legend

    settings = ROWS[entry["rows"][0]].keywords  # type: ignore[attr-defined]
    schedule = SCHEDULES[settings["schedule"]]
    figure, axes = plt.subplots(figsize=(9, 2.6), layout="constrained")
    draw_price(axes, price_units(schedule, 4, 8), f"{entry['title']}: 4 stages, 8 microbatches")
    legend(figure, schedule.chunks > 1)
    figure.savefig(folder / f"{entry['function']}.png", dpi=110, bbox_inches="tight",
                   facecolor="white")  # fmt: skip
    plt.close(figure)


def heading(title: str, line: str) -> tuple[str, ...]:
    return (title, line * len(title), "")
