"""``minidist bench engine``: a training step against other libraries, and matmul alone.

Every case is one whole step (forward, backward, and Adam or SGD) on one thread. Libraries run in
turn (see ``timing.py``), each other one in a process of its own (``peer.py``):

    PyTorch     eager mode
    fused       the same with an optimizer whose loop is in C++: Adam(fused=True)
    JAX         the whole step compiled by ``jit``
    autograd    HIPS autograd, which like minidist is Python around NumPy
    products    the step's matrix products at the speed of one large product, measured here: the
                time of a step if everything else took no time

Only what is installed is shown. Outside of the command, set OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from minidist import nn, optim
from minidist.bench.cases import Case, cases
from minidist.bench.peer import PEERS, Peer, started
from minidist.bench.timing import (
    CPU,
    WALL,
    Clock,
    Step,
    interleaved,
    median,
    microseconds,
    peak_bytes,
    ratio,
)
from minidist.engine import array as arrays
from minidist.engine.arithmetic import work
from minidist.engine.fusion import compiler
from minidist.engine.tensor import Tensor
from minidist.inspect.summaries import mfu

CLOCKS: dict[str, Clock] = {"wall": WALL, "cpu": CPU}


def training_step(case: Case, device: str, dtype: str = "float32") -> Step:
    """One step of minidist, as a function.

    In float16 the model and its inputs are float16, the optimizer's master copy and the loss
    float32, and the loss is scaled: see ``optim.MixedPrecision``.
    """
    model, loss, count = case.model, nn.CrossEntropy(), case.targets.size
    model.init(0, dtype=dtype, device=device)
    parts = []
    for inputs, targets in case.parts():
        inputs = inputs.astype(dtype) if inputs.dtype.kind == "f" else inputs
        parts.append([arrays.to_device(array, device) for array in (inputs, targets)])
    full = optim.SGD(1e-3) if case.rule == "sgd" else optim.Adam(1e-3)
    half = optim.MixedPrecision(full) if dtype == "float16" else None

    def in_float32() -> None:
        model.zero_grad()
        for inputs, targets in parts:
            loss(model(inputs), targets, count).backward()
        full.step(model.flat.data, model.flat.grad)
        arrays.synchronize(device)

    def in_float16() -> None:
        assert half is not None
        model.zero_grad()
        for inputs, targets in parts:
            half.backward(loss(model(inputs).astype("float32"), targets, count))
        half.step(model.flat.data, model.flat.grad)
        arrays.synchronize(device)

    return in_float16 if half else in_float32


def large_product(device: str, dtype: str = "float32") -> tuple[Step, int]:
    """A product of two square matrices, large enough to use the whole device; and its FLOPs."""
    xp, length = arrays.module(device), 1024
    if device.startswith("cuda"):
        length = 8192
    elif dtype == "float16":
        length = 256  # NumPy has no fast product in this dtype
    draw = np.random.default_rng(0).standard_normal((length, length), np.float32)
    a = arrays.to_device(draw.astype(dtype), device)
    out = xp.empty_like(a)

    def run() -> None:
        xp.matmul(a, a, out=out)
        arrays.synchronize(device)

    return run, 2 * length**3


def measure(
    case: Case,
    device: str,
    seconds: float,
    clock: str = "wall",
    dtype: str = "float32",
    peers: Sequence[Peer] = (),
) -> dict[str, Any]:
    """One row: milliseconds of each library, our ratio to each, and peak memory."""
    step = training_step(case, device, dtype)
    product, product_flops = large_product(device, dtype)
    before = work.flops
    step()
    flops = work.flops - before
    timed, on_gpu = CLOCKS[clock], device.startswith("cuda")
    steps: dict[str, Any] = {"minidist": step} | {one.name: one.load(case.name) for one in peers}
    if on_gpu:
        times = interleaved(steps, seconds, clock=timed, in_a_row=5)
        alone = median(interleaved({"product": product}, 0.2, clock=timed)["product"])
        times["product"] = [alone or 0.0] * len(times["minidist"])
    else:
        times = interleaved(steps | {"product": product}, seconds, clock=timed)
    times["matmul"] = [second * flops / product_flops for second in times["product"]]
    row: dict[str, Any] = {"case": case.name, "dtype": dtype, "flops": flops}
    row["rounds"] = len(times["minidist"])
    for name in ("minidist", *PEERS, "matmul"):
        middle = median(times.get(name))
        row[f"{name}_ms"] = None if middle is None else 1e3 * middle
        if name != "minidist":
            row[f"ratio_to_{name}"] = ratio(times, "minidist", name)
    product_seconds = median(times["product"]) or 0.0
    row["mfu"] = mfu(flops, row["minidist_ms"] / 1e3, product_flops / product_seconds)
    row["peak_bytes"] = peak_bytes(step, device)
    return row


def one_element(
    device: str, clock: str = "wall", peers: Sequence[Peer] = ()
) -> dict[str, float | None]:
    """Microseconds for the forward and backward of one product of two numbers."""
    xp = arrays.module(device)
    x, y = (Tensor(xp.ones(1, np.float32), requires_grad=True) for _ in range(2))

    def ours() -> None:
        (x * y).backward()
        if device != "cpu":
            arrays.synchronize(device)

    row: dict[str, float | None] = {"minidist": microseconds(ours, clock=CLOCKS[clock])}
    for peer in peers:
        if peer.name != "fused":  # there is no optimizer in it
            row[peer.name] = microseconds(peer.load(""))
    return row


def measure_all(
    device: str = "cpu",
    seconds: float = 6.0,
    only: str = "",
    clock: str = "wall",
    dtype: str = "float32",
) -> dict[str, Any]:
    """All results of the bench, as in its JSON."""
    with started(device, dtype, clock) as peers:
        return {
            "device": device,
            "clock": clock,
            "machine": platform.platform(),
            "versions": {
                "python": platform.python_version(),
                "numpy": np.__version__,
                **{PEERS[peer.name][0]: version(PEERS[peer.name][0]) for peer in peers},
            },
            "threads": os.environ.get("OMP_NUM_THREADS"),
            "loops": compiler(),
            "one_element_us": one_element(device, clock, peers),
            "cases": [
                measure(case, device, seconds, clock, dtype, peers)
                for case in cases()
                if only in case.name
            ],
        }


HEADINGS = {"torch": "PyTorch", "fused": "fused", "jax": "JAX", "autograd": "autograd"}


def report(results: dict[str, Any], console: Console) -> None:
    """Print the results as a table of at most 80 columns."""
    rows = results["cases"]
    shown = [name for name in PEERS if any(row[f"{name}_ms"] is not None for row in rows)]
    table = Table(
        title=f"one training step on {results['device']}, threads: {results['threads']}"
        + (f", loops by {results['loops']}" if results.get("loops") else ""),
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
        pad_edge=False,
    )
    headings = ["case", "ms", *(HEADINGS[name] for name in shown), "products", "MB"]
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "case" else "right", no_wrap=True)

    def times(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}×"

    for row in rows:
        table.add_row(
            row["case"],
            f"{row['minidist_ms']:.2f}",
            *(times(row[f"ratio_to_{name}"]) for name in (*shown, "matmul")),
            f"{row['peak_bytes'] / 1e6:.1f}",
        )
    console.print(table)
    console.print(
        "ms: minidist's median; ratios: minidist's time over the other's, below 1 is faster; "
        "fused: PyTorch with its fused optimizer; products: the step's matrix products alone; MB: "
        "peak memory of a step"
    )
    each = ", ".join(
        f"{name} {'-' if value is None else f'{value:.1f}'}"
        for name, value in results["one_element_us"].items()
    )
    console.print(f"one op on one element, forward and backward, µs: {each}")


def run(argv: list[str]) -> int:
    """Run the command: ``engine [--json FILE] [--device cuda] [--seconds S] [--only TEXT]``."""
    parser = argparse.ArgumentParser(
        prog="minidist bench engine",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--seconds", type=float, default=6.0, help="to spend on each case")
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        default="float32",
        help="float16: with a float32 master copy; meant for GPUs",
    )
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu on a shared machine")
    options = parser.parse_args(argv)
    try:
        arrays.module(options.device)
    except arrays.DeviceError as error:
        parser.error(str(error))
    results = measure_all(
        options.device, options.seconds, options.only, options.clock, options.dtype
    )
    report(results, Console())
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0
