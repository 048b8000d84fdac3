"""Look into a model: its size, FLOPs and bytes, where a NaN began, and how good its guesses are.

Read ``summaries.py`` first: it predicts the numbers that ``counters.py`` (FLOPs and bytes of each
op) and ``meter.py`` (bytes that the tape saves) measure.
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
