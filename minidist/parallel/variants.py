"""``METHODS`` maps "method/variant" to its constructor; each is a row of ``minidist compare``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from minidist.parallel import gradient_compression as compressors
from minidist.parallel.averaging.easgd import ElasticAveraging
from minidist.parallel.averaging.gossip import Gossip
from minidist.parallel.averaging.local_sgd import DiLoCo, LocalSGD
from minidist.parallel.data_parallel.data_parallel import DataParallel, Overlapped, PerParameter
from minidist.parallel.data_parallel.symmetric import SymmetricDataParallel
from minidist.parallel.gradient_compression.compression import Compressed
from minidist.parallel.mesh.mesh_parallel import MeshParallel
from minidist.parallel.method import Method
from minidist.parallel.pipeline.pipedream import PipeDream
from minidist.parallel.pipeline.pipeline import Pipeline
from minidist.parallel.serial import Serial
from minidist.parallel.server.backup_workers import BackupWorkers
from minidist.parallel.server.look_ahead import LookAhead
from minidist.parallel.server.parameter_server import ParameterServer
from minidist.parallel.tensor.tensor_parallel import TensorParallel
from minidist.parallel.zero.stage1 import Zero1
from minidist.parallel.zero.stage2 import Zero2
from minidist.parallel.zero.stage3 import Zero3


def every_axis(ranks: int) -> dict[str, int]:
    """Axes of a mesh of ``ranks`` ranks: tensor and pipeline of length 2 if possible, then data."""
    pp = 2 if ranks % 4 == 0 or ranks == 6 else 1
    tp = 2 if ranks in (2, 4, 8) else 1  # three and more replicas want layers that divide
    return {"dp": ranks // (pp * tp), "pp": pp, "tp": tp}


def tensor_alone(ranks: int) -> dict[str, int]:
    """All ranks on the tensor axis if they are 1, 2, 4 or 8, so that they divide a sequence."""
    return {"tp": ranks} if ranks in (1, 2, 4, 8) else {"dp": ranks}


def two_servers(ranks: int) -> int:
    """The number of servers of a sharded row: two, if there are at least two workers besides."""
    return 2 if ranks >= 4 else 1


# Compare's optimizer has momentum, which staleness makes unstable: these rows use both remedies.
look_ahead = partial(LookAhead, staleness_aware=True)

METHODS: dict[str, Callable[..., Method]] = {
    "serial": Serial,
    "data_parallel/per_parameter": PerParameter,
    "data_parallel/ring": DataParallel,
    "data_parallel/symmetric": SymmetricDataParallel,
    "data_parallel/overlapped": partial(Overlapped, bucket_mb=0.25, last_mb=0.1),
    "parameter_server/bsp": ParameterServer,
    "parameter_server/bsp_sharded": partial(ParameterServer, servers=two_servers),
    "parameter_server/bsp_colocated": partial(ParameterServer, colocated=True),
    "parameter_server/ssp": partial(look_ahead, staleness=2),
    "parameter_server/ssp_sharded": partial(look_ahead, staleness=2, servers=two_servers),
    "parameter_server/ssp_colocated": partial(look_ahead, staleness=2, colocated=True),
    "parameter_server/async": look_ahead,
    "parameter_server/async_sharded": partial(look_ahead, servers=two_servers),
    "parameter_server/async_colocated": partial(look_ahead, colocated=True),
    "parameter_server/backup": BackupWorkers,
    "zero/1": Zero1,
    "zero/2": Zero2,
    "zero/3": Zero3,
    "compression/float16": partial(Compressed, compressor=compressors.Float16),
    "compression/bfloat16": partial(Compressed, compressor=compressors.BFloat16),
    "compression/top_k": partial(Compressed, compressor=compressors.TopK),
    "compression/random_k": partial(Compressed, compressor=partial(compressors.RandomK, 0.1)),
    "compression/sign": partial(Compressed, compressor=compressors.Sign),
    "compression/qsgd": partial(Compressed, compressor=compressors.Quantised),
    "compression/power_sgd": partial(Compressed, compressor=compressors.PowerSGD),
    "local_sgd/average": LocalSGD,
    "local_sgd/diloco": DiLoCo,
    "gossip/ring": Gossip,
    "gossip/exponential": partial(Gossip, graph="exponential"),
    "easgd/sync": ElasticAveraging,
    "pipeline/naive": partial(Pipeline, schedule="naive", microbatches=1),
    "pipeline/gpipe": partial(Pipeline, schedule="gpipe", microbatches=4),
    "pipeline/1f1b": partial(Pipeline, schedule="1f1b", microbatches=4),
    "pipeline/interleaved": partial(Pipeline, schedule="interleaved", microbatches=4),
    "pipeline/zero_bubble_h1": partial(Pipeline, schedule="zero_bubble_h1", microbatches=4),
    "pipeline/zero_bubble_v": partial(Pipeline, schedule="zero_bubble_v", microbatches=4),
    "pipeline/pipedream": PipeDream,
    "tensor/parallel": TensorParallel,
    "mesh/every_axis": partial(MeshParallel, mesh=every_axis, microbatches=2),
}

# Only for models of sequences: these cut along the sequence too.
SEQUENCE_METHODS: dict[str, Callable[..., Method]] = {
    "tensor/sequence": partial(MeshParallel, mesh=tensor_alone, sequence=True),
    "mesh/sequence": partial(MeshParallel, mesh=every_axis, microbatches=2, sequence=True),
}
