"""Changing a method's settings after it was made: the new value takes effect, or is refused.

    method.clip = 1.0            takes effect: every step reads it
    method.microbatches = 4      takes effect in some methods, and is refused by others
    method.seed = 1              refused: the parameters were drawn from the old one

Every argument of a constructor is a setting of the same name. Some are used only when the method is
made, so a later assignment would silently have no effect. Only those listed in ``changeable`` may
be assigned; for others AttributeError is raised.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any, ClassVar


class Unsupported(TypeError):
    """A method does not support what was asked for; the message says why."""


class Built(type):
    """Metaclass: calls ``constructed`` after the constructor, and sets ``built`` to True."""

    def __call__(cls, *args: Any, **options: Any) -> Any:
        made = super().__call__(*args, **options)
        made.constructed()
        vars(made)["built"] = True
        return made


class Settings(metaclass=Built):
    """Base of classes that refuse an assignment to a setting if it would have no effect."""

    changeable: ClassVar[frozenset[str]] = frozenset()
    built = False  # whether the constructor is over

    def __setattr__(self, name: str, value: Any) -> None:
        if not self.built or name not in options_of(type(self)):
            super().__setattr__(name, value)
            return
        if name not in self.changeable:
            kind = type(self).__name__
            raise AttributeError(
                f"{kind}.{name} was used when it was made, so changing it now has no effect: make "
                f"a new {kind} with {name}=..., which can load() the state() of this one"
            )
        self.check_setting(name, value)
        super().__setattr__(name, value)
        self.changed(name)

    def constructed(self) -> None:
        """Called when the constructor, also the subclass's, has returned."""

    def check_setting(self, name: str, value: Any) -> None:
        """Raise an error for a value that the constructor would refuse."""

    def changed(self, name: str) -> None:
        """Setting ``name`` has a new value: update what depends on it."""


@cache
def options_of(kind: type) -> frozenset[str]:
    """The names of all arguments of the constructors of a class and of its bases."""
    found: set[str] = set()
    for base in kind.__mro__:
        if "__init__" in vars(base) and base is not object:
            found |= inspect.signature(vars(base)["__init__"]).parameters.keys()
    return frozenset(found - {"self", "args", "options", "kwargs"})
