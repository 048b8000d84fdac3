"""Count the calls, FLOPs and bytes of every op, forward and backward.

    with count_operations() as counted:
        loss(model(x), y).backward()
    print(counted.table())                                  # with rich: one row for each op
    mfu(counted.flops, seconds, peak)                       # see summaries.py

FLOPs are counted as in ``array.work``: 2 for each multiply-add of matrix products and convolutions.
Bytes are counted as if each array of an op is read or written once: in the forward its inputs and
its result; in the backward the gradient of the result, the saved arrays, and the gradients of the
inputs. A reshape moves no bytes.

A machine does some number of FLOPs in the time of moving one byte. An op with fewer FLOPs per byte
is limited by memory, and an op with more by arithmetic: the roofline (Williams, Waterman,
Patterson, "Roofline", CACM 52(4), 2009).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from minidist.engine.array import Array, work
from minidist.engine.mode import watch
from minidist.engine.tape import Backward, Gradients, Into, Node
from minidist.engine.tensor import Tensor
from minidist.inspect.meter import arrays_in, owner_of
from minidist.inspect.summaries import readable


@dataclass
class Count:
    """Calls, FLOPs and bytes of one kind of op, in the forward or in the backward."""

    calls: int = 0
    flops: int = 0
    nbytes: int = 0


class Counter:
    """What ``count_operations`` yields: counts by the name of the op."""

    def __init__(self) -> None:
        self.forward: dict[str, Count] = {}
        self.backward: dict[str, Count] = {}
        self._mark = work.flops  # after the last op that was counted

    @property
    def flops(self) -> int:
        """FLOPs of all ops, forward and backward."""
        return _sum([*self.forward.values(), *self.backward.values()]).flops

    @property
    def nbytes(self) -> int:
        """Bytes of all ops, forward and backward."""
        return _sum([*self.forward.values(), *self.backward.values()]).nbytes

    def after_forward(self, data: Array, parents: tuple[Tensor, ...], backward: Backward) -> None:
        count = self.forward.setdefault(backward.__qualname__.partition(".")[0], Count())
        count.calls += 1
        inputs = [parent.data for parent in parents]
        if all(owner_of(data) is not owner_of(array) for array in inputs):
            count.nbytes += data.nbytes + sum(array.nbytes for array in inputs)
        self._take_flops(count)

    def after_backward(self, node: Node, grad: Array, parts: Gradients) -> list[Any]:
        count = self.backward.setdefault(node.name, Count())
        count.calls += 1
        made = [part for part in parts if part is not None and not callable(part)]
        if any(callable(p) or owner_of(p) is not owner_of(grad) for p in parts if p is not None):
            saved = {id(array): array.nbytes for array in arrays_in(node.backward) if array.ndim}
            count.nbytes += grad.nbytes + sum(saved.values()) + sum(part.nbytes for part in made)
        self._take_flops(count)
        return [self._counted(part, count) if callable(part) else part for part in parts]

    def _counted(self, part: Any, count: Count) -> Any:
        """Wrap a gradient that is computed later, so that it is counted then."""

        def compute(*out: Array | None) -> Array:
            result = part.write(*out) if type(part) is Into else part()
            count.nbytes += result.nbytes
            self._take_flops(count)
            return result

        return Into(compute, part.each) if type(part) is Into else compute

    def _take_flops(self, count: Count) -> None:
        count.flops += work.flops - self._mark
        self._mark = work.flops

    def table(self) -> Table:
        """One row for each op, sorted by bytes, largest first."""
        table = Table(title="what the ops did", title_justify="left")
        table.add_column("op", no_wrap=True)
        for heading in ("calls", "FLOPs", "bytes", "FLOPs back", "bytes back", "FLOPs a byte"):
            table.add_column(heading, justify="right")
        none = Count()
        pairs = {
            name: (self.forward.get(name, none), self.backward.get(name, none))
            for name in self.forward | self.backward
        }
        for name, pair in sorted(pairs.items(), key=lambda item: -_sum(item[1]).nbytes):
            table.add_row(name, *_cells(*pair))
        table.add_section()
        table.add_row("all", *_cells(_sum(self.forward.values()), _sum(self.backward.values())))
        return table


def _sum(counts: Iterable[Count]) -> Count:
    counts = list(counts)
    return Count(
        sum(count.calls for count in counts),
        sum(count.flops for count in counts),
        sum(count.nbytes for count in counts),
    )


def _cells(forward: Count, backward: Count) -> list[str]:
    cells = [str(forward.calls)]
    for count in (forward, backward):
        cells += [readable(count.flops), readable(count.nbytes, "B")]
    both = _sum((forward, backward))
    return [*cells, f"{both.flops / both.nbytes:.2g}" if both.nbytes else "-"]


@contextmanager
def count_operations() -> Iterator[Counter]:
    """Count the ops inside the ``with`` block: yields a ``Counter``."""
    counter = Counter()
    with watch(counter):
        yield counter
