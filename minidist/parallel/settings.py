"""Settings that change after a method was made: each acts from the next step on, or is refused.

    method.clip = 1.0            acts: every step reads it
    method.microbatches = 4      acts in some methods, and is refused by others
    method.seed = 1              refused: the parameters were drawn by the old one

Whatever a constructor takes is a setting, under the same name. To assign one that was used up when
the method was made would change nothing, silently. So only ``changeable`` ones may be assigned.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any, ClassVar


class Built(type):
    """Classes whose objects know that their constructor is over."""

    def __call__(cls, *args: Any, **options: Any) -> Any:
        made = super().__call__(*args, **options)
        made.constructed()
        vars(made)["built"] = True
        return made


class Settings(metaclass=Built):
    """Base of what refuses settings that would be ignored."""

    changeable: ClassVar[frozenset[str]] = frozenset()
    built = False  # whether the constructor is over

    def __setattr__(self, name: str, value: Any) -> None:
        if not self.built or name not in options_of(type(self)):
            super().__setattr__(name, value)
            return
        if name not in self.changeable:
            kind = type(self).__name__
            raise AttributeError(
                f"{kind}.{name} was used when it was made, and to change it now would do nothing: "
                f"make a new {kind} with {name}=..., which can load() the state() of this one"
            )
        self.check_setting(name, value)
        super().__setattr__(name, value)
        self.changed(name)

    def constructed(self) -> None:
        """The constructor is over, that of the subclass too."""

    def check_setting(self, name: str, value: Any) -> None:
        """Raise for a value that the constructor would refuse."""

    def changed(self, name: str) -> None:
        """A setting has another value now: change what follows from it."""


@cache
def options_of(kind: type) -> frozenset[str]:
    """What the constructors of a class and of its bases take."""
    found: set[str] = set()
    for base in kind.__mro__:
        if "__init__" in vars(base) and base is not object:
            found |= inspect.signature(vars(base)["__init__"]).parameters.keys()
    return frozenset(found - {"self", "args", "options", "kwargs"})
