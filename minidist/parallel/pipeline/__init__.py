"""Pipelines: every rank holds some of the model's blocks, and microbatches pass from rank to rank.

Read ``schedules.py`` first: in which order a stage works. ``programs.py`` adds the messages,
``prover.py`` proves that a program can run, and ``executor.py`` runs it. ``tally.py`` counts what a
program sends and keeps; ``pricing.py`` runs one without a model, to compare schedules.
``pipeline.py`` is the method: ``stages.py`` cuts its model, ``layout.py`` says which rank holds and
does what, ``cost.py`` what a step costs. ``pipedream.py`` does not wait between steps.
"""

from __future__ import annotations

from minidist.lazy import offer

__getattr__, __dir__, __all__ = offer(
    __name__,
    {
        "schedules": [
            "SCHEDULES",
            "Backward",
            "Forward",
            "InputGradient",
            "Post",
            "Recv",
            "Reduce",
            "Schedule",
            "Send",
            "Step",
            "WeightGradient",
        ],
        "programs": ["program"],
        "prover": ["ScheduleError", "validate"],
        "executor": ["Executor"],
        "layout": ["Layout", "make_layout"],
        "tally": ["Memory"],
        "pricing": ["Price", "Span", "price", "price_units"],
        "stages": ["Bounds", "block_flops", "block_seconds", "cut", "join"],
        "cost": [],
        "pipeline": ["Pipeline"],
        "pipedream": ["PipeDream"],
    },
)
