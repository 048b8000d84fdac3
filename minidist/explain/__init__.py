"""Maps that explain an output: how much each part of an input contributes to it.

Read ``score.py`` first: it chooses the number to explain. Then ``gradients.py`` (by derivatives),
``occlusion.py`` (by covering parts) and ``attention.py`` (the attention weights of a GPT).
``sanity.py`` tests whether a map depends on the trained weights.
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
