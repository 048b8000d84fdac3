"""Methods of parallel training, one a file, all with the interface of ``Method``.

``METHODS`` maps "method/variant" to what makes it: a row in ``minidist compare`` each.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from minidist.parallel.data_parallel import DataParallel, Overlapped, PerParameter
from minidist.parallel.method import Method, StepCost
from minidist.parallel.parameter_server import ParameterServer
from minidist.parallel.pipeline import Pipeline
from minidist.parallel.serial import Serial
from minidist.parallel.stale_parameter_server import StaleParameterServer
from minidist.parallel.zero import Zero1
from minidist.parallel.zero2 import Zero2
from minidist.parallel.zero3 import Zero3

__all__ = [
    "METHODS",
    "DataParallel",
    "Method",
    "Overlapped",
    "ParameterServer",
    "PerParameter",
    "Pipeline",
    "Serial",
    "StaleParameterServer",
    "StepCost",
    "Zero1",
    "Zero2",
    "Zero3",
]

METHODS: dict[str, Callable[..., Method]] = {
    "serial": Serial,
    "data_parallel/per_parameter": PerParameter,
    "data_parallel/ring": DataParallel,
    "data_parallel/overlapped": partial(Overlapped, bucket_mb=0.25, last_mb=0.1),
    "parameter_server/bsp": ParameterServer,
    "parameter_server/bsp_sharded": partial(ParameterServer, servers=2),
    "parameter_server/bsp_colocated": partial(ParameterServer, colocated=True),
    "parameter_server/ssp": partial(StaleParameterServer, staleness=2),
    "parameter_server/async": StaleParameterServer,
    "zero/1": Zero1,
    "zero/2": Zero2,
    "zero/3": Zero3,
    "pipeline/naive": partial(Pipeline, schedule="naive", microbatches=1),
    "pipeline/gpipe": partial(Pipeline, schedule="gpipe", microbatches=4),
}
