"""Methods of parallel training, all with the interface of ``Method``; one package for each family.

Read ``method.py`` first, then ``serial.py``: every exact method must give its numbers. The
families, from the simplest on:

    data_parallel/          every rank holds the whole model and takes a part of each batch
    zero/                   the same, but no rank keeps all of the optimizer, gradients, parameters
    gradient_compression/   fewer bytes for a gradient
    averaging/              parameters are averaged, every few steps, in place of gradients
    server/                 some ranks keep the parameters, the others compute
    pipeline/               every rank holds some of the model's blocks
    tensor/                 every rank holds a part of every layer
    mesh/                   several of these at once, each along an axis

``METHODS`` has all of them by name.
"""

from __future__ import annotations

from minidist.lazy import offer

__path__.append(f"{__path__[0]}/../moved/parallel")  # modules under old names: see minidist/moved

__getattr__, __dir__, __all__ = offer(
    __name__,
    {
        "method": ["Method", "StepCost"],
        "simulation": ["Simulated", "simulate"],
        "serial": ["Serial"],
        "evaluation": ["evaluate"],
        "variants": ["METHODS"],
        "data_parallel": [
            "AllReduce",
            "AllReducePerParameter",
            "Buckets",
            "DataParallel",
            "Overlapped",
            "PerParameter",
            "SymmetricDataParallel",
            "SymmetricMemory",
        ],
        "mesh": ["Mesh", "MeshParallel"],
        "zero": [
            "GatheredUnits",
            "ReduceScatter",
            "ReduceScatterSlots",
            "ReduceScatterUnits",
            "Zero1",
            "Zero2",
            "Zero3",
        ],
        "gradient_sync": ["GradientSync"],
        "gradient_compression": ["Compressed", "CompressedSum"],
        "averaging": ["DiLoCo", "ElasticAveraging", "Gossip", "LocalSGD"],
        "server": [
            "BackupWorkers",
            "LookAhead",
            "ParameterServer",
            "ServerLost",
            "StaleParameterServer",
        ],
        "pipeline": ["PipeDream", "Pipeline"],
        "tensor": ["TensorParallel"],
    },
)
