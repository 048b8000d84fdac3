"""``minidist bench engine``: a training step against PyTorch eager, HIPS autograd and matmul alone.

Every case is one whole step (forward, backward and Adam) on one thread. All libraries run in one
process, in turn (see ``timing``). ``matmul`` is the time of the step's matrix products at the speed
of one large product, measured here: the time of a step if everything else took no time. The column
of a library that is not installed is empty. Outside of the command, set OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from minidist import models, nn, optim
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
from minidist.engine.array import work
from minidist.engine.tensor import Tensor
from minidist.inspect.summaries import mfu

CLOCKS: dict[str, Clock] = {"wall": WALL, "cpu": CPU}


@dataclass(frozen=True)
class Case:
    """A model with inputs and targets, and the same model in each other library."""

    name: str
    model: nn.Module
    inputs: np.ndarray
    targets: np.ndarray
    in_torch: Callable[[Any], Any]
    in_autograd: Callable[[Any], Any]


def _build(name: str, *arguments: Any) -> Any:
    """Call ``peer.name(*arguments)``; the module ``peer`` is last, for ``partial``."""
    *given, peer = arguments
    return getattr(peer, name)(*given)


def cases() -> list[Case]:
    """The cases, from small to large for each kind of model."""
    generator = np.random.default_rng(0)

    def images(n: int, *shape: int) -> tuple[np.ndarray, np.ndarray]:
        return generator.standard_normal((n, *shape), np.float32), generator.integers(0, 10, n)

    found = []
    for batch, hidden in ((32, 128), (128, 512), (512, 1024)):
        widths = (784, hidden, hidden, 10)
        name = f"MLP {batch}×" + "-".join(map(str, widths))
        found.append(
            Case(
                name,
                models.mlp(widths),
                *images(batch, 784),
                partial(_build, "mlp", widths),
                attrgetter("mlp"),
            )
        )
    found.append(
        Case(
            "CNN 64×28×28, 16-32 channels",
            models.cnn(16),
            *images(64, 28, 28),
            partial(_build, "cnn", 16),
            attrgetter("cnn"),
        )
    )
    for batch, length, width in ((8, 64, 128), (8, 128, 256), (4, 256, 512)):
        heads = 4 if width == 128 else 8
        tokens = generator.integers(0, 96, (2, batch, length))
        shape = (96, length, width, 4, heads)
        found.append(
            Case(
                f"GPT {batch}×{length}×{width}×4",
                models.gpt(*shape),
                tokens[0],
                tokens[1],
                partial(_build, "GPT", *shape),
                partial(_build, "gpt", heads),
            )
        )
    return found


def training_step(
    model: nn.Module, inputs: Any, targets: Any, device: str, dtype: str = "float32"
) -> Step:
    """One step of minidist with Adam, as a function.

    In float16 the model and its inputs are float16, the optimizer's master copy and the loss
    float32, and the loss is scaled: see ``optim.MixedPrecision``.
    """
    model.init(0, dtype=dtype, device=device)
    loss = nn.CrossEntropy()
    if inputs.dtype.kind == "f":
        inputs = inputs.astype(dtype)
    inputs, targets = arrays.to_device(inputs, device), arrays.to_device(targets, device)
    half = optim.MixedPrecision(optim.Adam(1e-3))
    full = optim.Adam(1e-3)

    def in_float32() -> None:
        model.zero_grad()
        loss(model(inputs), targets).backward()
        full.step(model.flat.data, model.flat.grad)
        arrays.synchronize(device)

    def in_float16() -> None:
        model.zero_grad()
        half.backward(loss(model(inputs).astype("float32"), targets))
        half.step(model.flat.data, model.flat.grad)
        arrays.synchronize(device)

    return in_float16 if dtype == "float16" else in_float32


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


def peers(device: str) -> dict[str, Any]:
    """The other libraries that are installed, by name."""
    wanted = ["torch", "autograd"] if device == "cpu" else ["torch"]
    return {
        name: import_module(f"minidist.bench.peer_{name}")
        for name in wanted
        if find_spec(name) is not None
    }


def measure(
    case: Case, device: str, seconds: float, clock: Clock = WALL, dtype: str = "float32"
) -> dict[str, Any]:
    """One row: milliseconds of each library, our ratio to each, and peak memory."""
    installed = peers(device) if dtype == "float32" or device != "cpu" else {}
    steps = {"minidist": training_step(case.model, case.inputs, case.targets, device, dtype)}
    if torch := installed.get("torch"):
        model = case.in_torch(torch)
        steps["torch"] = torch.step(model, case.inputs, case.targets, device, dtype)
    if autograd := installed.get("autograd"):
        parameters = [p.data.copy() for p in case.model.parameters()]
        forward = case.in_autograd(autograd)
        steps["autograd"] = autograd.step(forward, parameters, case.inputs, case.targets)
    product, product_flops = large_product(device, dtype)
    before = work.flops
    steps["minidist"]()
    flops = work.flops - before
    if device.startswith("cuda"):
        times = interleaved(steps, seconds, clock=clock, in_a_row=5)
        alone = median(interleaved({"product": product}, 0.2, clock=clock)["product"])
        times["product"] = [alone or 0.0] * len(times["minidist"])
    else:
        times = interleaved(steps | {"product": product}, seconds, clock=clock)
    times["matmul"] = [second * flops / product_flops for second in times["product"]]
    row: dict[str, Any] = {"case": case.name, "dtype": dtype, "flops": flops}
    row["rounds"] = len(times["minidist"])
    for name in ("minidist", "torch", "autograd", "matmul"):
        middle = median(times.get(name))
        row[f"{name}_ms"] = None if middle is None else 1e3 * middle
        if name != "minidist":
            row[f"ratio_to_{name}"] = ratio(times, "minidist", name)
    product_seconds = median(times["product"]) or 0.0
    row["mfu"] = mfu(flops, row["minidist_ms"] / 1e3, product_flops / product_seconds)
    row["peak_bytes"] = peak_bytes(steps["minidist"], device)
    return row


def one_element(device: str, clock: Clock = WALL) -> dict[str, float | None]:
    """Microseconds for the forward and backward of one product of two numbers."""
    xp = arrays.module(device)
    x, y = (Tensor(xp.ones(1, np.float32), requires_grad=True) for _ in range(2))

    def ours() -> None:
        (x * y).backward()
        if device != "cpu":
            arrays.synchronize(device)

    row: dict[str, float | None] = {"minidist": microseconds(ours, clock=clock)}
    installed = peers(device)
    for name in ("torch", "autograd"):
        peer = installed.get(name)
        step = None if peer is None else peer.one_element(*([device] if name == "torch" else []))
        row[name] = None if step is None else microseconds(step, clock=clock)
    return row


def measure_all(
    device: str = "cpu",
    seconds: float = 6.0,
    only: str = "",
    clock_name: str = "wall",
    dtype: str = "float32",
) -> dict[str, Any]:
    """All results of the bench, as in its JSON."""
    clock = CLOCKS[clock_name]
    return {
        "device": device,
        "clock": clock_name,
        "machine": platform.platform(),
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            **{name: import_module(name).__version__ for name in ("torch",) if find_spec(name)},
        },
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "one_element_us": one_element(device, clock),
        "cases": [
            measure(case, device, seconds, clock, dtype) for case in cases() if only in case.name
        ],
    }


def report(results: dict[str, Any], console: Console) -> None:
    """Print the results as a table."""
    table = Table(title=f"one training step on {results['device']}, threads: {results['threads']}")
    for heading in ("case", "ms", "PyTorch", "autograd", "products", "MFU", "peak MB"):
        table.add_column(heading, justify="left" if heading == "case" else "right", no_wrap=True)

    def times(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}×"

    for row in results["cases"]:
        table.add_row(
            row["case"],
            f"{row['minidist_ms']:.2f}",
            *(times(row[f"ratio_to_{name}"]) for name in ("torch", "autograd", "matmul")),
            f"{row['mfu']:.0%}",
            f"{row['peak_bytes'] / 1e6:.1f}",
        )
    console.print(table)
    console.print(
        "ms: minidist's median; ratios: minidist's time over the other's, below 1 is faster; "
        "products: the step's matrix products alone; MFU: FLOPs a second over those of one large "
        "product"
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
