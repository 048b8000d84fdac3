"""What does a model look at? Maps of how much each part of an input counts for one output.

Read ``score.py`` first: which number is explained. Then ``gradients.py`` (by derivatives),
``occlusion.py`` (by covering parts) and ``attention.py`` (the weights of a GPT). ``sanity.py`` asks
whether a map depends on what the model has learned.
"""

from __future__ import annotations

from minidist.lazy import offer

__getattr__, __dir__, __all__ = offer(
    __name__,
    {
        "score": ["Score"],
        "gradients": [
            "completeness_gap",
            "gradient",
            "gradient_times_input",
            "integrated_gradients",
        ],
        "occlusion": ["occlude"],
        "attention": ["attention_maps", "attention_rollout"],
        "sanity": ["cascade", "randomised", "rank_correlation"],
    },
)
