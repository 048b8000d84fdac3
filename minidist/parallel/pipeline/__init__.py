"""Pipelines: each rank has some of the model's blocks; microbatches pass from rank to rank.

Read ``schedules.py`` first: the order in which a stage computes, as a list of ``instructions.py``.
``programs.py`` adds the messages, ``prover.py`` proves that a program can run, and ``executor.py``
runs it. ``tally.py`` counts a program's messages and memory; ``pricing.py`` runs a program without
a model, to compare schedules. ``pipeline.py`` is the method: ``stages.py`` cuts its model,
``layout.py`` assigns parts and programs to ranks, ``cost.py`` predicts the cost of a step.
``pipedream.py`` does not wait between steps.
"""

from __future__ import annotations

from minidist.lazy import offer

__getattr__, __dir__, __all__ = offer(
    __name__,
    {
        "instructions": [
            "Backward",
            "Forward",
            "InputGradient",
            "Post",
            "Recv",
            "Reduce",
            "Send",
            "Step",
            "WeightGradient",
        ],
        "schedules": ["SCHEDULES", "Schedule"],
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
