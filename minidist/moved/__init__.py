"""The names that modules had in version 0.1, for those who copied an import line from it.

Each file here has the old name of a module, and puts the module that has its content today in its
place. The line that imported the old name gets a DeprecationWarning with the new one.

How Python finds them: a package's ``__path__`` lists the folders in which its modules are looked
for. ``minidist`` and its packages ``collectives``, ``comm`` and ``parallel`` append their folder
here to theirs, so that ``minidist.tensor`` is found as ``minidist/moved/tensor.py``, after
everything else.
"""

from __future__ import annotations

import sys
import warnings
from importlib import import_module


def now(new: str, old: str) -> None:
    """Let ``old`` mean the module ``new``."""
    warnings.warn(f"{old} is now {new}", DeprecationWarning, stacklevel=3)
    sys.modules[old] = import_module(new)
