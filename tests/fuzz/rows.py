"""The methods that are tried, and how much of each may be compared with serial training.

Exact methods are compared in everything. Of a lossy one, its exact limit is: all entries are sent,
nothing is stale, every step is averaged. Some limits hold for optimizers that are linear in the
gradient. What has no limit must get its first loss right, and agree between ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from minidist.collectives import ALL_REDUCE
from minidist.optim import GradientDescent
from minidist.parallel import METHODS, Buckets, MeshParallel, Method, Pipeline, TensorParallel
from minidist.parallel.averaging.gossip import Gossip
from minidist.parallel.averaging.local_sgd import DiLoCo, LocalSGD
from minidist.parallel.data_parallel.all_reduce import AllReduce
from minidist.parallel.gradient_compression import compressors
from minidist.parallel.gradient_compression.compression import Compressed
from minidist.parallel.pipeline.pipedream import PipeDream
from minidist.parallel.server.backup_workers import BackupWorkers
from minidist.parallel.server.stale_parameter_server import StaleParameterServer
from minidist.parallel.variants import two_servers
from minidist.parallel.zero.stage1 import ReduceScatter

Random = np.random.Generator
Options = dict[str, Any]
ANY = {"mlp": 4.0, "gpt": 2, "cnn": 1, "shared": 1, "recomputed": 1, "own": 1}
UP_TO_8 = (2, 3, 4, 6, 8)
OF_BLOCKS = {"mlp": 5.0, "gpt": 2, "cnn": 1, "shared": 1, "recomputed": 1, "own": 0.3}
WITH_SYNC = ANY | {"sync": 1.0}


@dataclass(frozen=True)
class Row:
    """``limit``: "all", or "linear" (optimizers), or "first" (loss alone).

    ``options(random, ranks)`` draws settings. ``blocks`` for each rank, if it cuts a model.
    ``clips``, ``accumulates``: how often these are asked for; a method that refuses them is asked
    now and then. ``sizes``: numbers of ranks.
    """

    make: Callable[..., Method]
    limit: str = "all"
    options: Callable[[Random, int], Options] = lambda random, ranks: {}
    kinds: Mapping[str, float] = field(default_factory=lambda: ANY)
    blocks: float = 0
    clips: float = 0.4
    accumulates: float = 0.4
    sizes: tuple[int, ...] = (1, 2, 3, 4, 5)
    freezes: bool = True


def schedule(random: Random, ranks: int) -> Options:
    return {"recompute": bool(random.random() < 0.2)}


def replicas(random: Random, ranks: int) -> Options:
    """Copies of a pipeline whose gradients come together in one of several ways."""
    copies = int(random.choice([n for n in range(1, ranks + 1) if ranks % n == 0]))
    sync = [None, AllReduce, partial(Buckets, 1e-3, 0), ReduceScatter][int(random.integers(4))]
    name = str(random.choice(["gpipe", "1f1b", "interleaved", "zero_bubble_h1"]))
    options = {"replicas": copies, "schedule": name} | schedule(random, ranks)
    return options | ({"sync": sync} if copies > 1 else {})


def a_mesh(random: Random, ranks: int) -> Options:
    """Axes whose product is the number of ranks."""
    tp = int(random.choice([n for n in (1, 2, 4) if ranks % n == 0]))
    rest = ranks // tp
    dp = int(random.choice([n for n in range(1, rest + 1) if rest % n == 0]))
    pp = rest // dp
    zero, sequence = int(random.integers(4)), bool(random.random() < 0.3)
    name = str(random.choice(["gpipe", "1f1b", "interleaved", "zero_bubble_h1"]))
    mesh = {"dp": dp, "pp": pp, "tp": tp}
    return {
        "mesh": mesh,
        "zero": zero if dp > 1 else 0,
        "schedule": name,
        "sequence": sequence and mesh["tp"] > 1,
        "recompute": pp > 1 and bool(random.random() < 0.3),
    }


def sharded(random: Random, ranks: int) -> Options:
    return {"overlap": bool(random.random() < 0.5), "keep": bool(random.random() < 0.3)}


def algorithm(random: Random, ranks: int) -> Options:
    return {"algorithm": str(random.choice([*ALL_REDUCE]))}


stale = partial(StaleParameterServer, staleness=0)
lossless = partial(partial, Compressed)
LIMITS = {
    "data_parallel/ring": Row(METHODS["data_parallel/ring"], options=algorithm, kinds=WITH_SYNC),
    "parameter_server/ssp": Row(stale, "linear", sizes=(1, 2)),
    "parameter_server/ssp_sharded": Row(partial(stale, servers=two_servers), "first"),
    "parameter_server/ssp_colocated": Row(partial(stale, colocated=True), "first", clips=0.2),
    "parameter_server/backup": Row(partial(BackupWorkers, backups=0)),
    "compression/top_k": Row(lossless(compressor=partial(compressors.TopK, 1.0))),
    "compression/random_k": Row(lossless(compressor=partial(compressors.RandomK, 1.0))),
    "compression/power_sgd": Row(lossless(compressor=partial(compressors.PowerSGD, 99))),
    "local_sgd/average": Row(partial(LocalSGD, every=1), "linear", clips=0.1),
    "local_sgd/diloco": Row(
        partial(DiLoCo, every=1, outer=partial(GradientDescent, 1.0)), "linear", clips=0.1
    ),
    "gossip/ring": Row(Gossip, "linear", clips=0.1, sizes=(1, 2, 3)),
    "gossip/exponential": Row(
        partial(Gossip, graph="exponential"), "linear", clips=0.1, sizes=(1, 2)
    ),
    "easgd/sync": Row(METHODS["easgd/sync"], "first", clips=0.1),
    "pipeline/pipedream": Row(
        partial(PipeDream, microbatches=1),
        kinds={"mlp": 5.0, "cnn": 1},
        blocks=1,
        clips=0.1,
        accumulates=0,
    ),
}


def row_of(key: str) -> Row:
    """A row of METHODS: its limit, or as it is."""
    if key in LIMITS:
        return LIMITS[key]
    made = METHODS[key]
    exact = getattr(made, "func", made).exact
    if key.startswith("pipeline"):
        chunks = 2 if key.split("/")[1] in ("interleaved", "zero_bubble_v") else 1
        return Row(made, options=schedule, kinds=OF_BLOCKS, blocks=chunks)
    kinds = WITH_SYNC if key.startswith("data_parallel") or key == "serial" else ANY
    refuses = getattr(made, "func", made).refuses
    return Row(
        made,
        "all" if exact else "first",
        kinds=kinds,
        accumulates=0.1 if "microbatches" in refuses else 0.4,
        clips=0.1 if "clip" in refuses else 0.4,
        sizes=(1,) if key == "serial" else (1, 2, 3, 4, 5),
    )


ROWS = {key: row_of(key) for key in METHODS} | {
    "pipeline/copies": Row(Pipeline, options=replicas, kinds=OF_BLOCKS, blocks=2, sizes=UP_TO_8),
    "tensor": Row(
        TensorParallel, options=sharded, kinds={"mlp": 2.0, "gpt": 4, "own": 0.2},
        freezes=False, sizes=(2, 4),
    ),
    "mesh": Row(
        MeshParallel, options=a_mesh, kinds={"mlp": 2.0, "gpt": 3, "own": 0.1}, blocks=2,
        sizes=UP_TO_8, freezes=False,
    ),
}  # fmt: skip
