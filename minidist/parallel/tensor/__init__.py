"""Tensor and sequence parallelism: each layer is cut over several ranks.

Read ``layers.py`` first: a linear layer by columns and by rows, and attention by heads. ``plan.py``
decides how each parameter is cut, ``cut.py`` defines a cut, and ``convert.py`` applies a plan.
``vocabulary.py`` and ``ends.py`` are the embedding and the loss; ``column.py`` overlaps a sum with
computation. ``part.py`` is the part that methods use, and ``tensor_parallel.py`` the method.
"""

from __future__ import annotations

from minidist.lazy import offer

__getattr__, __dir__, __all__ = offer(
    __name__,
    {
        "tensor_parallel": ["TensorParallel"],
        "part": ["TensorPart"],
        "plan": ["Plan", "plan_for", "show"],
        "cut": ["Cut"],
        "layers": ["ColumnParallel", "HeadParallel", "RowParallel"],
        "ends": ["VocabularyCrossEntropy"],
        "vocabulary": [],
        "column": [],
    },
)
