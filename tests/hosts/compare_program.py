"""Compare on two machines: prints which rows are left out; the others keep their formulas."""

from __future__ import annotations

import sys

from minidist.comm.mpi import MpiWorld
from minidist.compare import compare
from tests.compare.own import narrow

world = MpiWorld()
rows = ["data_parallel", "zero/1", "pipeline/gpipe"]
report, _ = compare(rows, narrow, world=world, steps=2, batch=16)
if world.rank == 0:
    for row in report["rows"]:
        for what in ("bytes_sent", "messages_sent", "peak_bytes"):
            assert row[what] == row[f"predicted_{what}"], (row["method"], what)
    reasons = [f"{row}: {reason}" for row, reason in report["not_applicable"].items()]
    sys.stdout.write(f"{len(report['rows'])} rows; left out {'; '.join(reasons)}\n")
