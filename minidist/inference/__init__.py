"""Answer many requests at once with a language model.

Read in this order: ``requests.py`` (what is asked and answered), ``blocks.py`` (the key-value cache
in blocks), ``ragged.py`` (one forward for sequences of different lengths), ``engine.py``
(continuous batching), ``timing.py`` (what users wait for), ``replicas.py`` (a model on each rank,
and one queue in front).
"""

from __future__ import annotations

from minidist.lazy import offer

__getattr__, __dir__, __all__ = offer(
    __name__,
    {
        "requests": ["Answer", "Refused", "Request"],
        "blocks": ["BlockPool"],
        "ragged": [],
        "replicas": ["Arrivals", "serve"],
        "timing": ["Timing", "run"],
        "queueing": ["erlang_c", "mean_wait"],
        "models": ["load_gpt"],
        "engine": ["Engine", "Event", "generate"],
    },
)
