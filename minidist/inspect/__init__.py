"""What a model has, does and keeps: its size, FLOPs and bytes, its faults, and how well it guesses.

Read ``summaries.py`` first: it predicts what ``counters.py`` (ops as they run) and ``meter.py``
(bytes that the tape keeps) measure.
"""

from __future__ import annotations

from minidist.lazy import offer

__getattr__, __dir__, __all__ = offer(
    __name__,
    {
        "summaries": ["layer_summary", "mfu", "summary", "training_flops"],
        "counters": ["Count", "count_operations"],
        "meter": ["measure_saved", "saved_for_backward"],
        "graph": ["to_dot"],
        "anomalies": ["AnomalyError", "detect_anomaly"],
        "metrics": [
            "accuracy",
            "confusion",
            "confusion_matrix",
            "f1",
            "mean_loss",
            "perplexity",
            "precision",
            "recall",
        ],
    },
)
