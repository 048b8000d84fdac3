"""What a declared model is, as a key: two with equal signatures cost and cut alike.

Ranks of one process each declare the same model. What follows from its declaration (where to cut
it, what its blocks cost) can then be worked out once, by ``Comm.once``, under the signature.
"""

from __future__ import annotations

from typing import Any

from minidist.nn.parameter import Buffer, Parameter

SIMPLE = (bool, int, float, str, type(None))


def signature(value: Any) -> Any:
    """A hashable key of a module: classes, settings, and shapes and names of parameters.

    Initial values are no part of it. A setting that is no number, text, or collection of those is
    equal only to itself.

    >>> from minidist.nn import Linear, Sequential
    >>> signature(Sequential(Linear(3, 4))) == signature(Sequential(Linear(3, 4)))
    True
    >>> signature(Sequential(Linear(3, 4))) == signature(Sequential(Linear(3, 5)))
    False
    """
    return _of(value, {})


def _of(value: Any, seen: dict[int, int]) -> Any:
    if isinstance(value, SIMPLE):
        return type(value), value
    if isinstance(value, Parameter):  # shared parameters are one: by when they were met first
        return value.declared, value.shared_name, seen.setdefault(id(value), len(seen))
    if isinstance(value, Buffer):
        return value.declared, value.value
    if isinstance(value, (list, tuple)):
        return tuple([_of(one, seen) for one in value])
    if isinstance(value, dict):
        return tuple([(name, _of(one, seen)) for name, one in value.items()])
    if hasattr(value, "named_parameters"):
        return type(value), _of(vars(value), seen)
    return Same(value)


class Same:
    """Equal to another of the same object, and to nothing else."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)
