"""A key for declared models: models with equal signatures have the same costs.

Each rank of a process declares the same model. Values that follow from its declaration (where to
cut it, what its blocks cost) are then computed once, by ``Comm.once`` with the signature as key.
"""

from __future__ import annotations

from typing import Any

from minidist.nn.parameter import Buffer, Parameter

SIMPLE = (bool, int, float, str, type(None))


def signature(value: Any) -> Any:
    """A hashable key of a module: classes, settings, and shapes and names of parameters.

    Initial values do not matter. A setting that is not a number, a text or a collection of these
    equals only itself.

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
    if isinstance(value, Parameter):  # the index tells which parameters are shared
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
    """Equal only to a ``Same`` of the same object."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)
