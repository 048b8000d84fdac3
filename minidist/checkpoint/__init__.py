"""Checkpoints: sharded, verified, resharded; and how often to write them.

    checkpoint.save(folder, method, step)        every rank writes what it holds
    saved = checkpoint.load(folder, method)      on any number of ranks, by any method

    with Checkpoints(folder, method, batches, overlapped=True) as checkpoints:
        for step in range(checkpoints.resume(), 1000):
            method.step(batches[step])
            if (step + 1) % 100 == 0:
                checkpoints.save(step + 1)

Read ``checkpoints.py`` first (how a checkpoint is written so that a kill at any moment loses
nothing), then ``manifest.py`` (what it says of itself) and ``loading.py`` (what is verified first).
``exchange.py`` reads and writes one file that other libraries can read; ``goodput.py`` says how
often to save.
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
