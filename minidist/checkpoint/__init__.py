"""Checkpoints: sharded, verified, resharded; and how often to write them.

    checkpoint.save(folder, method, step)        every rank writes its share
    saved = checkpoint.load(folder, method)      on any number of ranks, by any method

    with Checkpoints(folder, method, batches, overlapped=True) as checkpoints:
        for step in range(checkpoints.resume(), 1000):
            method.step(batches[step])
            if (step + 1) % 100 == 0:
                checkpoints.save(step + 1)

Read ``checkpoints.py`` first (writing, safely against a kill at any moment), then ``manifest.py``
(the description of a checkpoint) and ``loading.py`` (verification and loading). ``exchange.py``
reads and writes one file for other libraries; ``goodput.py`` computes how often to save.
"""

from __future__ import annotations

from minidist.lazy import offer

__getattr__, __dir__, __all__ = offer(
    __name__,
    {
        "checkpoints": ["Checkpoints", "save"],
        "loading": ["Loaded", "load"],
        "manifest": ["CheckpointError", "Damaged", "Manifest", "Mismatch"],
        "exchange": ["export_parameters", "import_parameters"],
        "goodput": ["daly_interval", "expected_goodput", "simulate", "young_interval"],
    },
)
