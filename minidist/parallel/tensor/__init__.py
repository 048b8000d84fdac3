"""Tensor and sequence parallelism: cuts inside a layer.

Read ``layers.py`` first: a linear layer by columns and by rows, and attention by heads. ``plan.py``
says which parameter is cut how, and ``cut.py`` what a cut is; ``convert.py`` applies a plan.
``vocabulary.py`` is the embedding and the loss, ``column.py`` hides a sum behind arithmetic,
``part.py`` is what a method takes of all this, and ``tensor_parallel.py`` the method.
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
