"""Answer many requests at once with a language model.

Read in this order: ``requests.py`` (requests and answers), ``blocks.py`` (the key-value cache in
blocks), ``ragged.py`` (one forward for sequences of different lengths), ``engine.py`` (continuous
batching), ``timing.py`` (latency and throughput), ``mesh_engine.py`` (a model on several ranks;
``share.py`` cuts the model, ``cost.py`` predicts the messages), ``replicas.py`` (several replicas
with one queue).
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
