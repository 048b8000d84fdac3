"""Plausible wrong versions, each of which the same checks that pass the right one must reject.

A mutant is the true source of a module with one piece of text replaced: what a slip of the
keyboard, or of the mind, would have left there.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from dataclasses import dataclass
from types import ModuleType


@dataclass(frozen=True)
class Mutant:
    """``old`` becomes ``new`` in ``module``'s source (every occurrence)."""

    module: str
    what: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.module.removeprefix('minidist.')}: {self.what}"

    def load(self) -> ModuleType:
        """The mutated module, under a name of its own; the true one stays as it is."""
        true = importlib.import_module(self.module)
        source = inspect.getsource(true)
        if self.old not in source:
            raise LookupError(f"{self}: the source no longer has {self.old!r}: update the mutant")
        name = f"{self.module}__mutant"
        module = ModuleType(name)
        module.__package__ = true.__package__
        sys.modules[name] = module  # dataclasses look their module up
        try:
            code = compile(source.replace(self.old, self.new), f"<mutant: {self.what}>", "exec")
            exec(code, module.__dict__)
        finally:
            del sys.modules[name]
        return module
