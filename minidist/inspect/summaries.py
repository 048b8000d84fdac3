"""The blocks of a model and the cost of a step, before anything is computed.

    parameters   from the declared shapes
    FLOPs        of the forward: 2 for each multiply-add of its matrix products and convolutions
    saved bytes  of the arrays that the forward saves for the backward

All three come from ``Module.cost``; tests check that they equal the counts of a real step. A
training step has the FLOPs of the forward, as many again for the gradients of the weights, and as
many again for the gradients of the inputs (which the first layer does not need). The fraction of
the machine's peak that this uses is the model FLOPs utilization, MFU (PaLM, arXiv 2204.02311,
appendix B).

``layer_summary`` measures the same on one real forward, for every module, inner modules included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from minidist import nn
from minidist.engine.array import work
from minidist.engine.mode import keep_buffers
from minidist.engine.seeds import draws
from minidist.engine.tensor import Tensor
from minidist.inspect.meter import measure_saved
from minidist.nn.module import LayerCost, Module, Shape, in_a_row


@dataclass
class Row:
    """One block of a model: its parameters, its cost on a given input, the bytes it saves."""

    name: str
    description: str
    parameters: int
    cost: LayerCost
    saved_bytes: int
    trained: bool = True  # it has parameters that are not frozen


def blocks(model: Module, shape: Shape, itemsize: int = 4) -> list[Row]:
    """A row for each block of a Sequential, or one row for any other module.

    ``shape`` is that of the input, batch included. A parameter that several blocks share is counted
    in the first of them. If the array between two blocks is saved by either of them, it is counted
    in the block that computed it. The model's input belongs to the data and is not counted.
    """
    parts: Sequence[tuple[str, Module]] = [("", model)]
    if isinstance(model, nn.Sequential):
        parts = list(model.blocks.items())
    rows, seen, costs, saved, whole = list[Row](), set[int](), list[LayerCost](), 0, shape
    for name, block in parts:
        own = [p for p in block.parameters() if id(p) not in seen]
        seen |= {id(p) for p in own}
        costs.append(block.cost(shape, itemsize))
        before, saved = saved, in_a_row(costs, whole, itemsize).saved_bytes
        if rows:  # the rest of the growth is the output of the block before
            rows[-1].saved_bytes += saved - before - costs[-1].saved_bytes
        size = sum(p.size for p in own)
        trained = bool(block.trained())
        rows.append(Row(name, repr(block), size, costs[-1], costs[-1].saved_bytes, trained))
        shape = costs[-1].shape
    return rows


def training_flops(model: Module, shape: Shape) -> int:
    """FLOPs of one forward and backward on a batch whose input has this shape.

    This is the number that ``minidist.engine.work`` counts. No gradient of the model's input is
    computed, so the first block with parameters computes only the gradient of its weights (exact if
    this block is a single layer).
    """
    total, first = 0, True
    for row in blocks(model, shape):
        total += row.cost.flops + row.cost.weight_flops
        total += 0 if first else row.cost.input_flops
        first = first and not row.trained
    return total


def mfu(flops_per_step: float, seconds_per_step: float, peak_flops: float) -> float:
    """Model FLOPs utilization: the fraction of the machine's peak that training uses.

    ``peak_flops`` is the peak, in FLOPs per second, of all devices together. Work that is done
    twice, as in activation checkpointing, is counted once, because the second time is not useful.
    """
    if seconds_per_step <= 0 or peak_flops <= 0:
        raise ValueError(f"mfu: {seconds_per_step} s and a peak of {peak_flops} must be positive")
    return flops_per_step / seconds_per_step / peak_flops


def summary(model: Module, shape: Shape, itemsize: int = 4) -> Table:
    """The blocks of a model as a table to print with rich; ``shape`` is the input's, batch first.

    >>> from rich import print
    >>> print(summary(nn.Sequential(nn.Linear(4, 3)), (1, 4)))  # doctest: +SKIP
    """
    rows = blocks(model, shape, itemsize)
    table = _table(f"on an input of {shape}", rows)
    table.add_section()
    table.add_row(
        "",
        "all",
        "",
        f"{sum(row.parameters for row in rows):,}",
        readable(sum(row.cost.flops for row in rows)),
        readable(sum(row.saved_bytes for row in rows), "B"),
    )
    return table


def layers(model: Module, x: Any) -> list[Row]:
    """A row for every module inside an initialised model, measured in one forward of ``x``.

    It needs no ``cost()``, so it works for your own modules. A module's row includes the modules
    inside it; their rows follow, indented, in the order of their calls. Saved bytes are counted in
    the module that saves them first.
    """
    rows, enclosing = list[Row](), list[Row]()

    def watched(name: str, module: Module) -> Callable[..., Tensor]:
        def forward(*inputs: Any, **options: Any) -> Tensor:
            size = sum(p.size for p in module.parameters())
            row = Row("  " * len(enclosing) + name, type(module).__name__, size, LayerCost(()), 0)
            rows.append(row)
            enclosing.append(row)
            flops, saved = work.flops, meter.bytes
            y = type(module).forward(module, *inputs, **options)
            row.cost = LayerCost(y.shape, work.flops - flops)
            row.saved_bytes = meter.bytes - saved
            enclosing.pop()
            return y

        return forward

    modules = model.named_modules()
    for path, module in modules.items():
        vars(module)["forward"] = watched(path.rpartition(".")[2], module)
    try:
        flat = model.flat
        parameters = [flat.data_and_loss, flat.frozen]
        with draws(0, 0), keep_buffers(), measure_saved(parameters) as meter:
            model(x)
    finally:
        for module in modules.values():
            del vars(module)["forward"]
    return rows


def layer_summary(model: Module, x: Any) -> Table:
    """The rows of ``layers``, as a table to print with rich."""
    return _table(f"every module, on an input of {x.shape}", layers(model, x))


def _table(title: str, rows: Sequence[Row]) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in ("", "block", "output", "parameters", "forward FLOPs", "saved bytes"):
        table.add_column(heading, justify="left" if heading in ("", "block") else "right")
    for row in rows:
        table.add_row(
            row.name,
            row.description.split("\n")[0].rstrip("("),
            "×".join(map(str, row.cost.shape)),
            f"{row.parameters:,}",
            readable(row.cost.flops),
            readable(row.saved_bytes, "B"),
        )
    return table


def readable(number: float, unit: str = "") -> str:
    """1234567 as "1.23 M", with decimal prefixes."""
    for prefix in ("", "k", "M", "G", "T"):
        if abs(number) < 1000 or prefix == "T":
            break
        number /= 1000
    digits = f"{number:.0f}" if not prefix else f"{number:.3g}"
    return f"{digits} {prefix}{unit}".rstrip()
