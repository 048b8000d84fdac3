"""Answer many requests at once with a language model.

Read in this order: ``requests.py`` (what is asked and answered), ``blocks.py`` (the key-value cache
in blocks), ``ragged.py`` (one forward for sequences of different lengths), ``engine.py``
(continuous batching), ``timing.py`` (what users wait for), ``mesh_engine.py`` (a model on several
ranks: ``share.py`` is what each has, ``cost.py`` what they send), ``replicas.py`` (several of them,
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
        "mesh_engine": ["MeshEngine"],
        "share": [],
        "cost": [],
        "timing": ["Timing", "run", "run_on"],
        "queueing": ["erlang_c", "mean_wait"],
        "models": ["load_gpt"],
        "engine": ["Engine", "Event", "generate"],
    },
)
