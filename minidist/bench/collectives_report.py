"""The report of ``minidist bench collectives``: tables, and a picture with crossover points."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median_low
from typing import Any

from rich.table import Table

from minidist.bench import point_to_point
from minidist.bench.kinds import KINDS, LIBRARY, SYMMETRIC
from minidist.bench.point_to_point import seconds_for

# One is another one again, one cannot be chosen, and one needs its own allocation.
NO_RIVALS = ("auto", "gloo", SYMMETRIC)
Report = dict[str, Any]
Row = dict[str, Any]


def median_of(reports: Sequence[Any]) -> Any:
    """Merge reports of the same form into one, with the median of each number."""
    first = reports[0]
    if isinstance(first, dict):
        return {key: median_of([report[key] for report in reports]) for key in first}
    if isinstance(first, list):
        return [median_of(parts) for parts in zip(*reports, strict=True)]
    numbers = [report for report in reports if isinstance(report, (int, float))]
    return median_low(numbers) if numbers else first


def rows_of(report: Report, kind: str) -> list[Row]:
    """The rows of one collective."""
    return [row for row in report["rows"] if row["collective"] == kind]


def kinds_of(report: Report) -> list[str]:
    """The collectives that were measured."""
    return list(dict.fromkeys(row["collective"] for row in report["rows"]))


def rivals(row: Row) -> list[str]:
    """The algorithms that "auto" can choose from."""
    return [name for name in row["seconds"] if name not in NO_RIVALS]


def fastest(row: Row) -> str:
    """The fastest of the algorithms that "auto" can choose from."""
    return min(rivals(row), key=lambda name: row["seconds"][name])


def times_the_fastest(row: Row, name: str) -> float:
    """The time of this algorithm over that of the fastest."""
    return row["seconds"][name] / row["seconds"][fastest(row)]


def worst(rows: Sequence[Row], name: str) -> float:
    """The time of an algorithm over that of the fastest, in its worst launch."""
    return max(times_the_fastest(row, name) for row in rows)


def how_near(report: Report) -> str | None:
    """How close "auto" is to the fastest, in words; None if it was not measured."""
    rows = [row for row in rows_of(report, "all_reduce") if "auto" in row["seconds"]]
    rows = [row for row in rows if rivals(row)]
    if not rows:
        return None
    near = sum(times_the_fastest(row, "auto") <= 1.1 for row in rows)
    row = max(rows, key=lambda row: times_the_fastest(row, "auto"))
    return (
        f"auto is within 10% of the fastest at {near} of {len(rows)} sizes; at worst it takes "
        f"{times_the_fastest(row, 'auto'):.2f} times as long, at {row['bytes']:,} bytes"
    )


def bus_bandwidth(nbytes: int, seconds: float, size: int, kind: str = "all_reduce") -> float:
    """Bus bandwidth in bytes per second, as defined by nccl-tests."""
    return nbytes / seconds * KINDS[kind].factor(size)


def limit(report: Report, row: Row) -> float | None:
    """The bus bandwidth that the transport allows; None for one rank, or no bytes.

    With a root, this is the limit of its port, in one direction. Without a root, it is that of a
    ring without additions: every rank exchanges n/p bytes with its neighbours in each step.
    """
    size, kind = report["ranks"], row["collective"]
    if size == 1 or not row["bytes"]:
        return None
    if KINDS[kind].one_way:
        moved = row["bytes"] * KINDS[kind].factor(size)
        return moved / seconds_for(report["point_to_point"], moved)
    return row["bytes"] / size / row["exchange_seconds"]


def crossovers(rows: list[Row]) -> list[tuple[float, str]]:
    """(bytes, algorithm): the algorithm is the fastest from this size until the next entry."""
    found: list[tuple[float, str]] = []
    before = None
    for row in rows:
        best = fastest(row)
        if not found or found[-1][1] != best:
            found.append(((before * row["bytes"]) ** 0.5 if before else row["bytes"], best))
        before = row["bytes"]
    return found


def tables(report: Report) -> Iterator[Table]:
    """The tables: point to point, and one for each collective."""
    if report["point_to_point"]:
        yield point_to_point.table(report["point_to_point"])
    for kind in kinds_of(report):
        yield table(report, kind)


def table(report: Report, kind: str) -> Table:
    """Microseconds for each call, the fastest marked, and bus bandwidths for large sizes."""
    size, rows = report["ranks"], rows_of(report, kind)
    view = Table(
        title=f"{kind.replace('_', ' ')} on {size} ranks of {report['library']}, "
        f"{report['dtype']}: µs a call (GB/s on the bus)",
        caption="*: the fastest; limit: GB/s of the bare transport; line: a cache line and back",
    )
    names = list(rows[0]["seconds"])
    for heading in ("bytes", *names, "limit", "line, ns"):
        view.add_column(heading.replace("_", " "), justify="right")
    for row in rows:
        cells = []
        for name in names:
            seconds = row["seconds"].get(name)
            if seconds is None:
                cells.append("-")
                continue
            mark = "*" if name == fastest(row) else ""
            bus = bus_bandwidth(row["bytes"], seconds, size, kind) / 1e9
            rate = f" ({bus:.2f})" if row["bytes"] >= 1 << 16 else ""
            cells.append(f"{mark}{seconds * 1e6:,.1f}{rate}")
        bare = limit(report, row)
        line = row.get("cache_line_seconds")
        cells.append(f"{bare / 1e9:.2f}" if bare else "-")
        cells.append(f"{line * 1e9:.0f}" if line else "-")
        view.add_row(f"{row['bytes']:,}", *cells)
    return view


def draw(report: Report, path: Path) -> None:
    """Draw a row for each collective: time and bus bandwidth by size; last, single messages."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = [kind for kind in kinds_of(report) if kind != "barrier"]  # one point makes no line
    count = len(kinds) + bool(report["point_to_point"])
    figure = Figure(figsize=(13, 0.6 + 4.4 * count), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(count, 2, squeeze=False)
    for kind, (left, right) in zip(kinds, panels, strict=False):
        _draw_kind(report, kind, left, right)
    if report["point_to_point"]:
        _draw_transport(report["point_to_point"], *panels[-1])
    for axes in panels.flat:
        axes.set_xlabel("bytes")
        axes.set_xscale("log", base=2)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{report['ranks']} ranks, {report['library']}, {report['dtype']}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _draw_kind(report: Report, kind: str, left: Any, right: Any) -> None:
    """Draw time, with the sizes at which the fastest algorithm changes, and bus bandwidth."""
    size, rows, title = report["ranks"], rows_of(report, kind), kind.replace("_", " ")
    for index, name in enumerate(name for name in rows[0]["seconds"] if name != "auto"):
        style: dict[str, Any] = {"color": f"C{index}", "linewidth": 1.4}
        if name == LIBRARY:
            style = {"color": "black", "linewidth": 2.2}
        elif name == "gloo":
            style = {"color": "black", "linewidth": 1.4, "linestyle": ":"}
        style |= {"label": name.replace("_", " "), "marker": "o", "markersize": 3}
        points = [(row["bytes"], row["seconds"][name]) for row in rows if name in row["seconds"]]
        nbytes = [point[0] for point in points]
        left.loglog(nbytes, [seconds * 1e6 for _, seconds in points], **style)
        bus = [bus_bandwidth(n, seconds, size, kind) / 1e9 for n, seconds in points]
        right.plot(nbytes, bus, **style)
    bare = [(row["bytes"], limit(report, row)) for row in rows]
    if all(rate for _, rate in bare):
        sizes, rates = zip(*bare, strict=True)
        right.plot(sizes, [rate / 1e9 for rate in rates], "--", color="gray", label="limit")
    for position, name in crossovers(rows):
        left.axvline(position, color="lightgray", zorder=0)
        left.text(
            position,
            1.0,
            f" {name.replace('_', ' ')}",
            rotation=90,
            fontsize=7,
            va="top",
            transform=left.get_xaxis_transform(),
            color="dimgray",
        )
    left.set_title(f"{title}: time; lines: another algorithm becomes the fastest", loc="left")
    left.set_ylabel("µs")
    right.set_title(f"{title}: bus bandwidth", loc="left")
    right.set_ylabel("GB/s")
    right.legend(frameon=False, fontsize=8)


def _draw_transport(rows: list[Row], left: Any, right: Any) -> None:
    """Draw the time of single messages, by the library's send and receive alone."""
    nbytes = [row["bytes"] for row in rows]
    for field, label in (("seconds", "one way"), ("exchange_seconds", "exchange, both ways")):
        left.loglog(nbytes, [row[field] * 1e6 for row in rows], "o-", markersize=3, label=label)
        rates = [row["bytes"] / row[field] / 1e9 for row in rows]
        right.plot(nbytes, rates, "o-", markersize=3, label=label)
    for before, row in pairwise(rows):
        if row["piece_bandwidth"]:
            rate = row["piece_bandwidth"] / 1e9
            right.plot([before["bytes"], row["bytes"]], [rate, rate], color="gray", linewidth=0.8)
    right.plot([], [], color="gray", linewidth=0.8, label="one way, piece by piece")
    left.set_title("point to point: time of one message", loc="left")
    left.set_ylabel("µs")
    left.legend(frameon=False, fontsize=8)
    right.set_title("point to point: bandwidth", loc="left")
    right.set_ylabel("GB/s each way")
    right.legend(frameon=False, fontsize=8)
