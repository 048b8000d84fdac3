"""A stand-in for a GPU's arrays, for machines without one: NumPy inside, CuPy's manners outside.

What CuPy refuses, this refuses: mixing with NumPy arrays, NumPy functions on its arrays, silent
conversion to NumPy, arguments that CuPy's functions do not have (``where=``, ``initial=``, einsum's
``out=``), and the largest of nothing. Code that passes here with ``device="strict"`` keeps its
arrays where they belong. Use: ``minidist.engine.array.DEVICES["strict"] = lambda: strict``.

``counts`` counts what a GPU would have to do: kernels launched (a function of the module is one, a
view none), times at which the host waits for the GPU to read something, arrays sent to the GPU.
"""

import ctypes
import types
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from cuda_on_host import kernel_on_host
from fusion import Symbol
from fusion import fuse as note_and_replay

from minidist.engine.kernels import KERNELS

_SCALARS = (int, float, bool, complex, np.generic, type(None))

counts: Counter[str] = Counter()  # "kernels", "waits", "uploads", and each function by its name

# A view, or the array itself, where that is possible.
_COPIES_IF_IT_MUST = frozenset(("ascontiguousarray", "astype", "ravel", "reshape"))

# What touches no array's memory.
_FREE = frozenset((
    "transpose", "swapaxes", "view", "squeeze", "expand_dims", "broadcast_to", "empty",
    "empty_like", "as_strided", "moveaxis", "may_share_memory", "result_type", "broadcast_shapes",
    "dtype", "split",
))  # fmt: skip


def _count(name: str, result: Any, given: Any) -> None:
    """One call of a function or method, if it makes a GPU work."""
    if name in ("item", "tolist"):
        counts["waits"] += 1
    elif name in _COPIES_IF_IT_MUST:
        copied = result.size > 0 and not np.may_share_memory(result, given)
        counts["kernels"] += copied
        counts[name] += copied
    elif name not in _FREE:
        counts["kernels"] += 1
        counts[name] += 1


class ndarray:  # noqa: N801 (named as NumPy's and CuPy's are)
    """An array of the stand-in device."""

    __slots__ = ("_host",)
    __array_ufunc__ = None
    __hash__ = None

    def __init__(self, host: np.ndarray) -> None:
        assert isinstance(host, np.ndarray)
        self._host = host

    @property
    def data(self) -> Any:
        return types.SimpleNamespace(ptr=self._host.ctypes.data)

    def get(self, out: np.ndarray) -> np.ndarray:
        counts["waits"] += 1
        np.copyto(out, self._host)
        return out

    def set(self, host: np.ndarray) -> None:
        counts["uploads"] += 1
        assert self._host.flags.c_contiguous
        np.copyto(self._host, host)

    def __dlpack__(self, **how: Any) -> Any:
        return self._host.__dlpack__(**how)  # as a GPU-aware MPI library reads an array

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._host.__dlpack_device__()

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("implicit conversion of a device array to NumPy: use to_host()")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # NumPy's ways of looking inside an array, among others
        value = getattr(self._host, name)
        return _wrapped(value, name, (self,)) if callable(value) else _wrap(value)

    def __getitem__(self, index: Any) -> Any:
        result = self._host[_unwrap(index, "indexing")]
        parts = index if isinstance(index, tuple) else (index,)
        if any(isinstance(part, (ndarray, list)) for part in parts):
            _count("getitem", result, None)  # picks elements; numbers and slices give a view
        return _wrap(result)

    def __setitem__(self, index: Any, value: Any) -> None:
        _count("setitem", None, None)
        self._host[_unwrap(index, "indexing")] = _unwrap(value, "assignment")

    def __len__(self) -> int:
        return len(self._host)

    def __bool__(self) -> bool:
        counts["waits"] += 1
        return bool(self._host)

    def __int__(self) -> int:
        counts["waits"] += 1
        return int(self._host)

    def __float__(self) -> float:
        counts["waits"] += 1
        return float(self._host)

    def __repr__(self) -> str:
        return f"strict.{self._host!r}"


def _operator(name: str) -> Any:
    def method(self: ndarray, *others: Any) -> Any:
        values = [_unwrap(other, name) for other in others]
        result = getattr(self._host, name)(*values)
        _count(name, result, None)
        if name.startswith("__i") and name != "__invert__":
            assert result is self._host
            return self
        return NotImplemented if result is NotImplemented else _wrap(result)

    return method


for _name in (  # noqa: SIM905 (a list of 36 strings is no clearer)
    "add sub mul truediv floordiv mod pow matmul radd rsub rmul rtruediv rpow rmatmul "
    "iadd isub imul itruediv ipow eq ne lt le gt ge neg pos abs invert and or xor rand ror "
    "lshift rshift"
).split():
    setattr(ndarray, f"__{_name}__", _operator(f"__{_name}__"))


def _wrap(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return ndarray(value)
    if isinstance(value, np.generic):
        return ndarray(np.asarray(value))  # a GPU's results stay on it, single numbers too
    if isinstance(value, (list, tuple)) and any(isinstance(item, np.ndarray) for item in value):
        return type(value)(_wrap(item) for item in value)
    return value


def _unwrap(value: Any, where: str) -> Any:
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, np.ndarray):
        raise TypeError(f"{where}: a NumPy array of shape {value.shape} among device arrays")
    if isinstance(value, (list, tuple)):
        return type(value)(_unwrap(item, where) for item in value)
    return value


def _check(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse what CuPy's function of this name does not take, by its 14.2's signatures."""
    unknown = {"where", "initial", "mode"} | (
        {"out", "order", "casting"} if name == "einsum" else set()
    )
    if wrong := unknown & kwargs.keys():
        raise TypeError(f"{name}: CuPy's has no {', '.join(sorted(wrong))}")
    if name in ("max", "min", "amax", "amin", "argmax", "argmin") and args[0].size == 0:
        raise ValueError(f"{name}: CuPy refuses an array without elements, whatever the axis")


def _wrapped(function: Any, name: str, owner: tuple[Any, ...] = ()) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        _check(name, (*owner, *args), kwargs)
        values = [_unwrap(arg, name) for arg in args]
        named = {key: _unwrap(value, name) for key, value in kwargs.items()}
        result = function(*values, **named)
        _count(name, result, owner[0]._host if owner else values[0] if values else None)
        return _wrap(result)

    return call


class _Function:
    """A function of the module: NumPy's, on device arrays alone; ufuncs keep their methods."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for first in args:
            if isinstance(first, Symbol):
                assert isinstance(self._function, np.ufunc), f"fuse: no {self._function.__name__}"
                return first._program.note(self._function, args, **kwargs)
        return _wrapped(self._function, self._function.__name__)(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "reduceat":
            raise AttributeError("CuPy's ufuncs have no reduceat")
        return _wrapped(getattr(self._function, name), name)


def asarray(value: Any, dtype: Any = None) -> ndarray:
    """A device array of numbers, of a NumPy array (a copy to the device), or itself."""
    if isinstance(value, ndarray) and dtype in (None, value._host.dtype):
        return value
    host = value._host if isinstance(value, ndarray) else np.array(value)
    if host is not getattr(value, "_host", None) and not host.flags.fnc:
        host = np.array(host, order="C")  # stored by columns, or by rows: nothing else
    counts["uploads"] += not isinstance(value, ndarray)
    return ndarray(np.asarray(host, dtype=dtype))


def array(value: Any, dtype: Any = None, copy: bool = True) -> ndarray:
    """A new device array."""
    counts["kernels"] += 1
    return ndarray(np.array(asarray(value)._host, dtype=dtype))


def asnumpy(value: ndarray) -> np.ndarray:
    """A copy on the host."""
    counts["waits"] += 1
    return value._host.copy()


def fuse(kernel_name: str) -> Callable[[Any], Any]:
    """``cupy.fuse``: see fusion.py."""
    assert kernel_name.isidentifier()

    def made(function: Any) -> Any:
        run = note_and_replay(function, lambda x: _unwrap(x, kernel_name), _wrap)

        def call(*given: Any) -> Any:
            _count(kernel_name, None, None)
            return run(*given)

        return call

    return made


class RawKernel:
    """``cupy.RawKernel``: the CUDA text compiled for the host, or the NumPy lines beside it."""

    def __init__(self, code: str, name: str, options: tuple[str, ...] = ()) -> None:
        assert name in code
        self._name = name
        self._dtype = {"__half": "e", "float": "f", "double": "d"}[
            code.split("typedef ")[1].split()[0]
        ]

    def __call__(self, grid: Any, block: Any, args: tuple[Any, ...]) -> None:
        _count(self._name, None, None)
        assert 0 < np.prod(block) <= 1024
        kernel = KERNELS[self._name]
        given = [_unwrap(value, self._name) for value in args]
        for value in given:
            if isinstance(value, np.ndarray) and not value.flags.c_contiguous:
                assert kernel.over == "points", "no gaps, and all in one order"
                assert value.shape == given[0].shape
                assert sorted(value.T.strides) == sorted(value.copy(order="K").T.strides)
        if run := kernel_on_host(self._name, self._dtype):
            run(grid[0], tuple(given))
            return
        lengths = 2 if kernel.over == "columns" else 1
        pointers = [
            None if number is None and isinstance(value, int) else value
            for (number, *_), value in zip(kernel.expected["f"], args[:-lengths], strict=True)
        ]
        kernel.function(np, *[_unwrap(value, self._name) for value in pointers])


def _matrices(pointers: Any, dtype: str, rows: int, columns: int, ld: int) -> list[np.ndarray]:
    """Matrices stored by columns, as cuBLAS sees them, from where each begins."""
    size = np.dtype(dtype).itemsize
    assert ld >= max(1, rows), "cuBLAS refuses a leading dimension shorter than a column"
    nbytes = (ld * (columns - 1) + rows) * size
    raw = [np.frombuffer((ctypes.c_char * nbytes).from_address(int(p)), dtype) for p in pointers]
    strides = (size, ld * size)
    return [np.lib.stride_tricks.as_strided(flat, (rows, columns), strides) for flat in raw]


def _gemm(dtype: str, turn: Any, sizes: Any, a: Any, b: Any, c: Any, numbers: Any) -> None:
    """C ← alpha · op(A) op(B) + beta · C for each of the matrices; a, b, c: (pointers, ld)."""
    m, n, k = sizes
    wide = "d" if dtype == "d" else "f"
    alpha, beta = (np.frombuffer((ctypes.c_char * np.dtype(wide).itemsize).from_address(p), wide)[0]
                   for p in numbers)  # fmt: skip
    for one, two, out in zip(
        _matrices(a[0], dtype, *((k, m) if turn[0] else (m, k)), a[1]),
        _matrices(b[0], dtype, *((n, k) if turn[1] else (k, n)), b[1]),
        _matrices(c[0], dtype, m, n, c[1]),
        strict=True,
    ):
        result = alpha * (one.T if turn[0] else one) @ (two.T if turn[1] else two)
        out[...] = result + beta * out if beta else result
    counts["kernels"] += 1
    counts["gemm"] += 1


def _gemm_ex(handle, ta, tb, m, n, k, alpha, a, at, lda, b, bt, ldb, beta, c, ct, ldc, *how):
    dtype = {(2, 68): "e", (0, 68): "f", (1, 70): "d"}[ct, how[0]]
    assert at == bt == ct
    _gemm(dtype, (ta, tb), (m, n, k), ([a], lda), ([b], ldb), ([c], ldc), (alpha, beta))


def _gemm_batched(dtype: str) -> Any:
    def run(handle, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, count):
        def listed(where: int) -> np.ndarray:
            return np.frombuffer((ctypes.c_char * (8 * count)).from_address(where), np.uint64)

        parts = (listed(a), lda), (listed(b), ldb), (listed(c), ldc)
        _gemm(dtype, (ta, tb), (m, n, k), *parts, (alpha, beta))

    return run


class _Quiet:
    """A device, stream or event: on the host nothing is ever behind."""

    id = ptr = 0

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def __enter__(self) -> "_Quiet":
        return self

    def __exit__(self, *_: Any) -> None: ...
    def _nothing(self, *_: Any) -> None: ...

    synchronize = use = record = wait_event = _nothing


cuda = types.SimpleNamespace(
    cublas=types.SimpleNamespace(
        gemmEx=_gemm_ex, sgemmBatched=_gemm_batched("f"), dgemmBatched=_gemm_batched("d")
    ),
    get_cublas_handle=lambda: 0,
    Device=_Quiet,
    Stream=_Quiet,
    Event=_Quiet,
    get_current_stream=_Quiet,
    alloc_pinned_memory=bytearray,
)
linalg = types.SimpleNamespace(qr=_Function(lambda a: tuple(np.linalg.qr(a))))
lib = types.SimpleNamespace(
    stride_tricks=types.SimpleNamespace(as_strided=_Function(np.lib.stride_tricks.as_strided))
)


def __getattr__(name: str) -> Any:
    value = getattr(np, name)
    if callable(value) and not isinstance(value, type):
        return _Function(value)
    return value
