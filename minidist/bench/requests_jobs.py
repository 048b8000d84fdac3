"""What ``minidist bench requests`` measures, on the ranks that it starts; and the predictions.

Each way of answering is measured on the wall, by ``inference.run_on``, and predicted by the same
call on arrays without numbers, in the simulator. The machines that are simulated are calibrated
on other things, and left alone (``requests_machine.py``): one for a rank that works alone, and one
for all ranks at the same time.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np

from minidist.bench.requests_machine import machine_here
from minidist.collectives import central
from minidist.comm.comm import Comm
from minidist.comm.launcher import launch
from minidist.comm.local.world import LocalWorld
from minidist.comm.machine import Machine
from minidist.compress import files, quantize_weights
from minidist.compress.rebuild import declared
from minidist.engine.array import defaults
from minidist.inference import MeshEngine, Request, Timing, run_on
from minidist.models import gpt
from minidist.nn.layers import Sequential
from minidist.parallel import Mesh

Row = dict[str, Any]
MARK = "minidist-requests:"  # the beginning of the line with the results
VOCABULARY, CONTEXT = 63, 128


@dataclass(frozen=True)
class Way:
    """A way to answer: on a mesh of ranks, ``at_once`` sequences on each replica."""

    name: str
    at_once: int
    mesh: Mapping[str, int] = field(default_factory=dict)
    bits: int | None = None  # of weights quantized in groups

    @property
    def ranks(self) -> int:
        return prod(self.mesh.values())


def ways(ranks: int, at_once: int) -> list[Way]:
    """On one rank, and on ``ranks`` of them."""
    fewer = (2**k for k in range(1, at_once.bit_length()) if 2**k < at_once)
    found = [
        Way("one after the other", 1),
        *(Way(f"{few} at once", few) for few in fewer),
        Way(f"{at_once} at once", at_once),
        Way(f"{at_once} at once, int8 weights", at_once, bits=8),
        Way(f"{at_once} at once, int4 weights", at_once, bits=4),
    ]
    if ranks > 1:
        found += [
            Way(f"{ranks} replicas", at_once, {"dp": ranks}),
            Way(f"layers cut over {ranks} ranks", at_once, {"tp": ranks}),
            Way(f"{ranks} stages", at_once, {"pp": ranks}),
        ]
    return found


def requests(count: int, new: int, seed: int = 0) -> list[Request]:
    """Prompts of 4 to 59 tokens, each to be continued by ``new``."""
    random = np.random.default_rng(seed)
    lengths = random.integers(4, 60, count)
    prompts = [tuple(random.integers(0, VOCABULARY, int(n)).tolist()) for n in lengths]
    return [Request(prompt, new, seed=number) for number, prompt in enumerate(prompts)]


def model_of(way: Way, trained: str) -> Sequential:
    model = gpt(VOCABULARY, CONTEXT).init(0)
    if trained:
        model.load(files.parameters(trained))
    return model if way.bits is None else quantize_weights(model, way.bits)


def answered(
    comm: Comm, way: Way, model: Sequential, asked: Sequence[Request], arrivals: Any = None
) -> dict[str, Any]:
    """What users of one way notice, and what it takes; on rank 0 of ``comm``."""
    engine = MeshEngine(model, Mesh(comm, **way.mesh), way.at_once)
    held = engine.pool.nbytes + sum(one.data.nbytes for one in parts(engine.model))
    sent = comm.trace.sent.nbytes
    timing: Timing = run_on(comm, model, asked, arrivals, at_once=way.at_once, mesh=way.mesh)
    every = np.zeros((comm.size, 2))
    every[comm.rank] = comm.trace.sent.nbytes - sent, held
    central.gather(comm, every)
    return {
        "tokens_a_second": timing.tokens_a_second,
        "first": [timing.first_token(), timing.first_token(99)],
        "each": [timing.each_token(), timing.each_token(99)],
        "waited": timing.first_token_mean() - timing.each_token(),
        "sent": float(every[:, 0].sum()),
        "memory": float(every[:, 1].max()),
    }


def parts(model: Sequential) -> list[Any]:
    """Parameters and buffers."""
    return [*model.named_parameters().values(), *model.named_buffers().values()]


def simulated(
    way: Way, machine: Machine, asked: Sequence[Request], arrivals: Any = None
) -> dict[str, Any]:
    """The same on arrays without numbers, in virtual time."""
    shape = model_of(way, "")

    def run(comm: Comm) -> dict[str, Any]:
        with defaults(device="phantom"):
            model: Any = declared(shape).init(0)
            return answered(comm, way, model, asked, arrivals)

    return launch(run, way.ranks, LocalWorld(machine))[0]


def main(comm: Comm, settings: dict[str, Any]) -> None:
    """Rank 0 prints all rows. Ranks that a way does not need sleep meanwhile."""
    asked = requests(settings["count"], settings["new"])
    stream = requests(settings["stream"], settings["new"], seed=2)
    found, machines = measured(comm, settings, asked, stream)
    on_first(comm, 1, report, found, machines, asked, stream)


def measured(
    comm: Comm, settings: dict[str, Any], asked: Sequence[Request], stream: Sequence[Request]
) -> tuple[list[Row], dict[int, list[Machine]]]:
    """(a row for each way, on rank 0; machines by number of ranks).

    A machine is calibrated before each way, so that a disturbance of a second spoils one of many.
    """
    rows: list[Row] = []
    groups = {size: comm.split(comm.rank < size) for size in (1, comm.size)}
    machines: dict[int, list[Machine]] = {size: [] for size in groups}
    for way in ways(comm.size, settings["at_once"]):
        model, group = model_of(way, settings["trained"]), groups[way.ranks]
        machines[way.ranks].append(on_first(comm, way.ranks, machine_here, group))
        given = answered, group, way, model
        on_first(comm, way.ranks, *given, asked[:2])  # to warm up
        turns = [on_first(comm, way.ranks, *given, asked) for _ in range(settings["turns"])]
        row: Row = {"way": way, "streams": []}
        speed = np.zeros(1)
        if comm.rank == 0:
            turns.sort(key=lambda one: one["tokens_a_second"])
            row["measured"] = turns[len(turns) // 2]
            speed[0] = row["measured"]["tokens_a_second"]
        rows.append(row)
        if way.at_once != settings["at_once"] or way.bits is not None:
            continue
        central.broadcast(comm, speed)
        for load in settings["loads"]:
            rate = load * float(speed[0]) / settings["new"]
            gaps = np.random.default_rng(1).exponential(1 / rate, len(stream))
            times = np.cumsum(gaps).tolist()
            one = on_first(comm, way.ranks, *given, stream, times)
            row["streams"].append({"load": load, "rate": rate, "times": times, "measured": one})
    return rows, machines


def typical(machines: Sequence[Machine]) -> Machine:
    """The median of each number of some machines."""
    names = ("latency", "bandwidth", "reduce_bandwidth", "flops", "memory_bandwidth", "launch",
             "sequence")  # fmt: skip
    middle: dict[str, Any] = {
        name: float(np.median([getattr(one, name) for one in machines])) for name in names
    }
    return replace(machines[0], **middle)


def report(
    found: Sequence[Row],
    calibrated: Mapping[int, Sequence[Machine]],
    asked: Sequence[Request],
    stream: Sequence[Request],
) -> None:
    """Predict each row on the machine of its ranks, and print all."""
    machines = {size: typical(some) for size, some in calibrated.items()}
    rows: list[Row] = []
    streams: list[Row] = []
    for row in found:
        way, both = row["way"], {"measured": row["measured"]}
        machine, new = machines[way.ranks], asked[0].count
        both["predicted"] = simulated(way, machine, asked)
        rows.append({"way": way.name, "ranks": way.ranks, **both})
        places = way.at_once * way.mesh.get("dp", 1)
        for one in row["streams"]:
            streams.append({
                "way": way.name, "load": one["load"], "rate": one["rate"], "places": places,
                "service": [places * new / kind["tokens_a_second"] for kind in both.values()],
                "measured": one["measured"],
                "predicted": simulated(way, machine, stream, one["times"]),
            })  # fmt: skip
    known = {size: vars(machine) for size, machine in machines.items()}
    result = {"machines": known, "rows": rows, "streams": streams}
    print(MARK + json.dumps(result, default=str), flush=True)


def on_first(comm: Comm, ranks: int, run: Callable[..., Any], *given: Any) -> Any:
    """``run(*given)`` on the first ranks; the others sleep until it is done, and get None."""
    done, found = np.zeros(1, np.int64), None
    comm.barrier()
    if comm.rank < ranks:
        found = run(*given)
    if comm.rank == 0:
        for rank in range(ranks, comm.size):
            comm.send(done, rank)
    elif comm.rank >= ranks:
        comm.wait_for(0)
        comm.recv(done, 0)
    return found


if __name__ == "__main__":
    launch(lambda comm: main(comm, json.loads(sys.argv[1])), 1)
