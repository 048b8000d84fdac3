"""The figures of ``tests/gpu/run`` as Markdown, put between two marks of docs/gpu.md."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

START, END = "<!-- measured: start -->", "<!-- measured: end -->"
Found = dict[str, Any]


def write(page: Path, results: dict[str, Found]) -> None:
    """Replace what stands between the marks of ``page``."""
    text = page.read_text()
    before, rest = text.split(START)
    _, after = rest.split(END)
    figures = "\n".join(lines(results))
    page.write_text(f"{before}{START}\n{figures}\n{END}{after}")


def lines(results: dict[str, Found]) -> Iterator[str]:
    """The whole measured part."""
    machine = results.get("machine", {})
    versions = ", ".join(f"{k} {v}" for k, v in machine.get("versions", {}).items())
    yield (
        f"\n{datetime.date.today():%-d %B %Y}: {machine.get('card', 'card unknown')}, "
        f"Python {machine.get('python', '?')}, CUDA {machine.get('cuda', '-')}, {versions}."
    )
    if "copy_gb_s" in machine:
        float32, float16 = (machine[f"product_{d}_tflop_s"] for d in ("float32", "float16"))
        yield (
            f"\nThe card's limits, measured in the same run: {machine['copy_gb_s']:,.0f} GB/s for "
            f"a copy of 1 GB (read and written), {float32:.0f} TFLOP/s for a float32 product of "
            f"8192 × 8192 matrices, {float16:.0f} in float16."
        )
    yield from _tests(results.get("tests"))
    for dtype in ("float32", "float16"):
        yield from _cases(dtype, results.get(dtype), machine)
    yield from _launches(results.get("launches"))
    yield from _ranks(results.get("ranks"))


def _tests(found: Found | None) -> Iterator[str]:
    if not found:
        return
    yield "\n### Tests\n\n| tests/gpu | passed | failed | skipped |\n|---|---|---|---|"
    for name, group in found.items():
        if not isinstance(group, dict):
            continue
        if "error" in group:
            yield f"| {name} | did not run | | {_cell(group['error'][-200:])} |"
            continue
        failed = ", ".join(case["test"] for case in group["failed"]) or "none"
        skipped = "; ".join(group["skipped"]) or "none"
        yield f"| {name} | {group['passed']} | {_cell(failed)} | {_cell(skipped)} |"


def _cases(dtype: str, found: Found | None, machine: Found) -> Iterator[str]:
    if not found:
        return
    yield f"\n### A training step in {dtype}\n"
    yield (
        "| case | ms | PyTorch ms | over PyTorch | kernels | GPU busy | TFLOP/s | GB/s | peak MB | "
        "longest kernels |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    for row in found.get("cases", []):
        if "error" in row:
            yield f"| {row['case']} | {_cell(row['error'])} | | | | | | | | |"
            continue
        seconds = row["minidist_ms"] / 1e3
        busy = f"{row['gpu_ms'] / row['minidist_ms']:.0%}" if "gpu_ms" in row else "-"
        longest = ", ".join(
            f"{name.split('<')[0].split('(')[0].removeprefix('void ')[:28]} {share:.0%}"
            for name, _, share in row.get("longest", [])[:3]
        )
        yield (
            f"| {row['case']} | {row['minidist_ms']:.2f} | {_number(row.get('torch_ms'))} | "
            f"{_number(row.get('ratio_to_torch'))} | {row.get('kernels', '-')} | {busy} | "
            f"{row['flops'] / seconds / 1e12:.2f} | {row['bytes'] / seconds / 1e9:.0f} | "
            f"{row['peak_bytes'] / 1e6:.1f} | {_cell(longest)} |"
        )
    if "error" in found:
        yield f"\nStopped: {_cell(found['error'][-300:])}"


def _launches(found: Found | None) -> Iterator[str]:
    if not found or "skipped" in found:
        return
    yield "\n### One call, µs of the host\n\n| call | µs |\n|---|---|"
    for name, value in found.items():
        if isinstance(value, float) and name != "took_s":
            yield f"| {name} | {value:.1f} |"


def _ranks(found: Found | None) -> Iterator[str]:
    if not found:
        return
    yield "\n### Two MPI ranks\n"
    if "skipped" in found:
        yield f"Not run: {found['skipped']}."
        return
    yield (
        "| method | largest gap of a loss to serial | bytes sent a step | bytes staged a step "
        "| ms |\n|---|---|---|---|---|"
    )
    for row in found["methods"]:
        yield (
            f"| {row['method']} | {row['gap']:.0e} | {row['bytes']:,} | {row['staged']:,} | "
            f"{row['ms']:.1f} |"
        )
    if "error" in found:
        yield f"\nEnded with an error: {_cell(found['error'][-300:])}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _cell(text: str) -> str:
    """Text that stays within one cell of a table."""
    return " ".join(text.replace("|", "/").split())


if __name__ == "__main__":  # python tests/gpu/page.py gpu.json docs/gpu.md
    write(Path(sys.argv[2]), json.loads(Path(sys.argv[1]).read_text()))
