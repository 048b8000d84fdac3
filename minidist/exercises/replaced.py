"""What an answer has replaced in the process around it: functions that measure, or write the marks.

    type(comm).send = lambda *arguments: None      then nothing is sent, and nothing counted

What messages pass through, and ``json``, are noted before an answer is loaded, and looked at again
after the last case: whoever has put another one in its place is found. An answer that puts the
old one back in time is not; see ``watch.py`` on what no marker in Python can do.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

PACKAGES = ("minidist.comm.", "minidist.exercises.", "minidist.engine.", "json.")


class Surroundings:
    """The functions and classes around an answer, as they are when this is made."""

    def __init__(self) -> None:
        self.before = dict(_functions())

    def replaced(self) -> list[str]:
        """The names under which something else is found now, such as "json.dumps"."""
        now = dict(_functions())
        return [
            ".".join(part for part in name if part)
            for name, one in self.before.items()
            if name[0] in sys.modules and now.get(name) is not one
        ]


def _functions() -> Iterator[tuple[tuple[str, str, str], Any]]:
    """((module, name, name in the class), object) of all that can be called."""
    for module, found in list(sys.modules.items()):
        if not f"{module}.".startswith(PACKAGES):
            continue
        for name, one in list(vars(found).items()):
            if callable(one) and not name.startswith("__"):
                yield (module, name, ""), one
            if isinstance(one, type) and one.__module__ == module:
                for inner, method in list(vars(one).items()):
                    if callable(method) or isinstance(
                        method, (property, staticmethod, classmethod)
                    ):
                        yield (module, name, inner), method
