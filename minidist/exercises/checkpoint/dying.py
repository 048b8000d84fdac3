"""A function that is ended at one of its calls of the system, as a killed process is.

Opening a file to write counts as a call, and so does each write and all that renames, removes, cuts
off, copies or syncs a file. Of a write at which the function ends, half reaches the file. After its
end no call does anything more, whatever the function catches.
"""

from __future__ import annotations

import _io
import builtins
import io
import os
from collections.abc import Callable
from typing import Any


class Killed(BaseException):
    """The process ends here."""


def dying_at(moment: int, save: Callable[[], Any]) -> bool:
    """Run ``save`` and end it at its call number ``moment``; whether it was ended."""
    left = [moment]
    dead = [False]

    def alive() -> None:
        if left[0] == 0 or dead[0]:
            dead[0] = True
            raise Killed
        left[0] -= 1

    class File:
        """A file whose writes may be the last thing that happens; half of it has been written."""

        def __init__(self, file: Any) -> None:
            self._file = file

        def write(self, data: Any) -> Any:
            if left[0] == 0 or dead[0]:
                self._file.write(data[: len(data) // 2])
                self._file.flush()
            alive()
            return self._file.write(data)

        def writelines(self, several: Any) -> None:
            for data in several:
                self.write(data)

        def close(self) -> None:
            self._file.close()

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *error: Any) -> None:
            self._file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        def __iter__(self) -> Any:
            return iter(self._file)

    true_open = builtins.open
    calls = ["replace", "rename", "remove", "unlink", "fsync", "open", "write", "truncate"]
    calls += ["sendfile", "copy_file_range"]  # by which shutil copies
    changed = {name: getattr(os, name) for name in calls if hasattr(os, name)}
    openers = (builtins, io, _io)  # pathlib opens by the second, tempfile by the third

    def opened(file: Any, mode: str = "r", *more: Any, **options: Any) -> Any:
        if not set(mode) & set("wax+"):
            return true_open(file, mode, *more, **options)
        alive()
        found = true_open(file, mode, *more, **options)
        try:
            alive()  # an old file is empty now, and nothing has been written
        except Killed:
            found.close()
            raise
        return File(found)

    def dying(true: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            alive()
            return true(*arguments, **options)

        return call

    for module in openers:
        module.open = opened  # type: ignore[attr-defined]
    for name, true in changed.items():
        setattr(os, name, dying(true))
    try:
        save()
    except Killed:
        pass
    finally:
        for module in openers:
            module.open = true_open  # type: ignore[attr-defined]
        for name, true in changed.items():
            setattr(os, name, true)
    return dead[0]
