"""@fused: a chain of element-wise steps as one loop over the elements.

    @fused
    def _average(xp, mean, grad, scratch, beta):
        mean *= beta
        mean += xp.multiply(grad, 1 - beta, out=scratch)

NumPy runs it as it is written: each step is a pass over the arrays, and a call that costs about a
microsecond. One loop reads and writes each array once:

    on a GPU                     CuPy makes one kernel of it (``cupy.fuse``)
    on the host, if asked for    numba compiles a loop: pip install "minidist[fast]", and
                                 MINIDIST_FUSE=numba in the environment, the same on all ranks

Both note the steps and compile them (see steps.py), so nothing is written twice. A loop of numba's
rounds each step as NumPy does. The tests hold the two bitwise equal, but no processor promises it:
one that joins a product and a sum rounds once. So methods refuse to start if ranks chose
differently. What has no loop (exp, say, where NumPy's own is faster) runs as it is written, and so
do arrays that are not contiguous, of several shapes or dtypes, or float16.

The first use on a machine compiles for half a second a function. The result is kept in
``~/.cache/minidist/fused``.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from functools import cache, partial, wraps
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from minidist.engine.steps import Notes, loop_of


def fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make ``function(xp, *arrays and numbers)``, a chain of element-wise steps, one loop.

    Inside are only arithmetic, in place or not, and ``xp``'s element-wise functions; a number that
    changes from call to call must be an argument, or the first one stays for good. Different
    arguments are different memory. What ``scratch`` contains afterwards has no meaning.
    """

    @cache
    def kernel(xp: Any) -> Callable[..., Any]:
        return xp.fuse(kernel_name=function.__name__)(lambda *given: function(xp, *given))

    by_loop = loops(function)

    @wraps(function)
    def run(xp: Any, *given: Any) -> Any:
        if xp is np:
            return by_loop(*given) if compiler() else function(np, *given)
        return function(xp, *given) if type(xp) is Notes else kernel(xp)(*given)

    return run


def loops(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function(numpy, *given)`` by a compiled loop, where there is one for what is given."""
    made: dict[Any, Callable[..., Any]] = {}

    def run(*given: Any) -> Any:
        if not alike(given):
            return function(np, *given)
        kinds = (given[0].dtype, *map(type, given))
        if kinds not in made:
            made[kinds] = compiled(function, *kinds)
        return made[kinds](*given)

    return run


@cache
def compiler() -> str:
    """What compiles loops for the host in this process: "numba", or "" for nothing.

    Raises ValueError for another ``MINIDIST_FUSE``, ModuleNotFoundError if numba is not installed.
    """
    name = os.environ.get("MINIDIST_FUSE", "")
    if name not in ("", "numba"):
        raise ValueError(f"MINIDIST_FUSE={name}: numba, or nothing, compiles loops on the host")
    if name and find_spec(name) is None:
        raise ModuleNotFoundError(
            f'MINIDIST_FUSE={name}, and {name} is not installed: pip install "minidist[fast]"'
        )
    return name


def alike(given: tuple[Any, ...]) -> bool:
    """Whether the first is an array, and all arrays are contiguous, of its shape and dtype."""
    first = given[0]
    if type(first) is not np.ndarray or not first.ndim:
        return False
    shape, dtype = first.shape, first.dtype
    for value in given:
        if type(value) is np.ndarray and not (
            value.shape == shape and value.dtype == dtype and value.flags.c_contiguous
        ):
            return False
    return True


def compiled(function: Callable[..., Any], dtype: np.dtype, *kinds: type) -> Callable[..., Any]:
    """The loop for arguments of these types; without one, the function as it is written."""
    import numba  # type: ignore[import-not-found, import-untyped, unused-ignore]

    try:
        text, returns = loop_of(function, dtype, kinds)
    except (TypeError, AttributeError):  # NoLoop is one; a stand-in lacks much that an array has
        return partial(function, np)
    module = load(f"{function.__name__.lstrip('_')}_{dtype.name}", text)
    loop = numba.njit(module.loop, error_model="numpy", cache=module.__spec__ is not None)

    def run(*given: Any) -> Any:
        new = np.empty_like(given[0])
        loop(*given, new)
        return new

    return run if returns else loop


def load(name: str, text: str) -> ModuleType:
    """A module of this text, kept as a file, so that numba can keep what it compiles beside it.

    Without a place to write, it is a module without a file.
    """
    folder = Path.home() / ".cache" / "minidist" / "fused"
    path = folder / f"{name}_{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}.py"
    try:
        if not path.exists() or path.read_text() != text:
            folder.mkdir(parents=True, exist_ok=True)
            own = path.with_suffix(f".{os.getpid()}")
            own.write_text(text)
            own.replace(path)  # at once: other ranks read and write it too
        spec = spec_from_file_location(f"minidist_loop_{path.stem}", path)
        assert spec is not None and spec.loader is not None
        module = module_from_spec(spec)
        sys.modules[spec.name] = module  # numba looks for it there
        spec.loader.exec_module(module)
    except OSError:
        module = ModuleType(name)
        exec(text, vars(module))
    return module
