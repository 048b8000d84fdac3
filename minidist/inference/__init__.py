"""Answer many requests at once with a language model.

Read in this order: ``requests.py`` (what is asked and answered), ``blocks.py`` (the key-value cache
in blocks), ``ragged.py`` (one forward for sequences of different lengths), ``engine.py``
(continuous batching), ``timing.py`` (what users wait for).
"""

from __future__ import annotations

from minidist.lazy import offer

__getattr__, __dir__, __all__ = offer(
    __name__,
    {
        "requests": ["Answer", "Refused", "Request"],
        "blocks": ["BlockPool"],
        "ragged": [],
        "timing": ["Timing", "run"],
        "models": ["load_gpt"],
        "engine": ["Engine", "Event", "generate"],
    },
)
