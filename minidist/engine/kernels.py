"""One CUDA kernel for several NumPy calls, written beside them.

On a GPU every NumPy-like call launches a kernel. A launch costs the host about 10 µs, and each
kernel reads and writes memory. For an op that is a chain of such calls with a sum or a maximum in
it, ``kernel`` puts one CUDA kernel beside the NumPy lines:

    @kernel("const T *x, T *y", "y[i] = x[i] > 0 ? x[i] : T(0);")
    def relu(xp, x, y):
        xp.maximum(x, 0, out=y)

``relu(xp, x, y)`` runs the lines on NumPy arrays and launches the kernel on CuPy arrays. Both take
the same arguments and fill the same arrays. ``tests/engine/test_kernels.py`` compares them on the
host, ``tests/gpu`` on a GPU. For a chain without a sum ``fusion.fused`` is shorter: there CuPy
makes the kernel from the NumPy lines. If numba compiles loops on the host (see fusion.py), it does
so for "elements" and "points" too.

In the CUDA text

    T, A       the dtype of the first array, and the one to accumulate in: float for half and float
    i, n       over="elements": a thread for each element of the first array; n elements.
               over="points": the same for a text in which i is nothing but the index of all
               arrays: these may lie in any one order, such as images with their channels last
    row, w     over="rows": a block of threads for each row of the first array; w elements a row.
               ``total(v)`` and ``largest(v)`` combine one value of every thread of the block
    column, n, w   over="columns": 8 columns a block, ``lane`` of 128 for each, over n rows
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import numpy as np

from minidist.engine.array import Array
from minidist.engine.fusion import compiler, loops

FLOATS = {"e": ("__half", "float"), "f": ("float", "float"), "d": ("double", "double")}
OTHERS = {
    "long long": "ql",
    "bool": "?",
    "unsigned char": "B",
    "unsigned long long": "QL",
    "double": "d",
}  # dtype characters of NumPy
NUMBERS: dict[str, Callable[[Any], Any]] = {"double": float, "long long": int, "bool": bool}

COMMON = """
typedef {T} T;
typedef {A} A;

template <class F> __device__ A combined(A v, A nothing, F f) {{
    __shared__ A part[32];  // one value a warp of 32 threads
    for (int k = 16; k; k /= 2) v = f(v, __shfl_xor_sync(~0u, v, k));
    __syncthreads();  // an earlier call has been read by all
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
    __syncthreads();
    v = threadIdx.x % 32 < blockDim.x / 32 ? part[threadIdx.x % 32] : nothing;
    for (int k = 16; k; k /= 2) v = f(v, __shfl_xor_sync(~0u, v, k));
    return v;
}}
__device__ A total(A v) {{
    return combined(v, A(0), [](A a, A b) {{ return a + b; }});
}}
__device__ A largest(A v) {{
    return combined(v, A(__int_as_float(0xff800000)), [](A a, A b) {{ return a > b ? a : b; }});
}}
"""

OPENING = {
    "elements": """
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i >= n) return;
""",
    "points": """
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i >= n) return;
""",
    "rows": """
    long long row = blockIdx.x;
""",
    "columns": """
    long long column = blockIdx.x * 8 + threadIdx.x;
    int lane = threadIdx.y;
""",
}


Expected = tuple[Callable[[Any], Any] | None, str, bool]


def _expected(declared: str, dtype: str) -> Expected:
    """The argument that "const T *x" or "double rate" declares, in a kernel for ``dtype``.

    Returns the conversion of a number, or None for an array; the dtype characters of arrays that
    are accepted; and whether the argument is only read.
    """
    match = re.fullmatch(r"(const )?([a-zA-Z ]+?) (\*?)(\w+)", declared.strip())
    if match is None:
        raise ValueError(f"kernel: cannot read the argument {declared!r}")
    const, kind, pointer, _ = match.groups()
    if not pointer:
        return NUMBERS[kind], "", True
    own = {"T": dtype, "A": "d" if dtype == "d" else "f"}
    return None, own.get(kind) or OTHERS[kind], const is not None


def _order(array: Array) -> tuple[Any, ...] | None:
    """Shape and strides in elements, equal for arrays in the same order; None if there are gaps."""
    size = array.itemsize
    steps = tuple(stride // size for stride in array.strides)
    span = 1 + sum((length - 1) * step for length, step in zip(array.shape, steps, strict=True))
    return (array.shape, steps) if span == array.size else None


class Kernel:
    """A function of NumPy arrays and the CUDA kernel that does the same on a GPU."""

    def __init__(
        self, name: str, arguments: str, body: str, over: str, function: Callable[..., None]
    ) -> None:
        if over not in OPENING:
            raise ValueError(f"kernel {name}: over must be one of {', '.join(OPENING)}, not {over}")
        self.name = name
        self.over = over
        self.function = function
        self.arguments, self.body = arguments, body
        lengths = {"points": ["n"], "elements": ["n"], "rows": ["w"], "columns": ["n", "w"]}[over]
        declared = ", ".join([arguments, *(f"long long {length}" for length in lengths)])
        self.text = f'extern "C" __global__ void {name}({declared}) {{{OPENING[over]}{body}\n}}\n'
        each = re.split(r",\s*", arguments)
        self.expected = {dtype: [_expected(one, dtype) for one in each] for dtype in FLOATS}
        self.floating = re.search(r"\b[TA]\b", arguments) is not None
        self.compiled: dict[Any, Callable[..., None]] = {}

    def source(self, dtype: str) -> str:
        """The whole CUDA text for a dtype character: "e", "f" or "d"."""
        header = "#include <cuda_fp16.h>\n" if dtype == "e" else ""
        value, sum_of = FLOATS[dtype]
        return header + COMMON.format(T=value, A=sum_of) + self.text

    def prepared(self, xp: Any, dtype: str, given: tuple[Any, ...]) -> list[Any] | None:
        """The kernel's arguments, from those of the function; None if an array does not fit."""
        made = []
        order = None
        if self.over == "points" and not given[0].flags.c_contiguous:
            order = _order(given[0])
        for (number, dtypes, read_only), value in zip(self.expected[dtype], given):  # noqa: B905
            if number is not None:
                made.append(number(value))
            elif value is None:
                made.append(0)  # a null pointer
            elif value.dtype.char not in dtypes:
                return None
            elif value.flags.c_contiguous if order is None else _order(value) == order:
                made.append(value)
            elif read_only and order is None:
                made.append(xp.ascontiguousarray(value))
            else:
                return None
        return made

    def launch(self, xp: Any, given: tuple[Any, ...]) -> None:
        """Run on arrays of a GPU: as one kernel, or line by line where the kernel does not fit."""
        first = given[0]
        dtype = first.dtype.char if self.floating else "f"
        made = self.prepared(xp, dtype, given) if dtype in FLOATS else None
        if made is None or first.size == 0:
            self.function(xp, *given)
            return
        size = first.size
        grid: tuple[int, ...]
        block: tuple[int, ...]
        lengths: tuple[int, ...]
        if self.over in ("elements", "points"):
            grid, block, lengths = ((size + 255) // 256,), (256,), (size,)
        else:
            width = first.shape[-1]
            if self.over == "rows":
                threads = min(1024, 32 * ((width + 127) // 128))  # about 4 elements a thread
                grid, block, lengths = (size // width,), (threads,), (width,)
            else:
                grid, block, lengths = ((width + 7) // 8,), (8, 128), (size // width, width)
        run = self.compiled.get((xp, dtype))
        if run is None:
            options = ("-std=c++17",)
            run = xp.RawKernel(self.source(dtype), self.name, options=options)
            self.compiled[xp, dtype] = run
        run(grid, block, (*made, *lengths))


KERNELS: dict[str, Kernel] = {}


def kernel(
    arguments: str, body: str, over: str = "elements"
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Put a CUDA kernel beside ``function(xp, *arrays and numbers)``, which fills arrays in place.

    ``arguments`` and ``body`` are CUDA. An array is a pointer there, and a missing one (None) a
    null pointer; numbers are ``double``, ``long long`` or ``bool``. A ``const`` array that is not
    contiguous is copied first. Where another array is not, or one is not of the declared type, a
    GPU runs the NumPy lines instead.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        made = Kernel(function.__name__.lstrip("_"), arguments, body, over, function)
        KERNELS[made.name] = made
        by_loop = loops(function) if over in ("elements", "points") else partial(function, np)

        @wraps(function)
        def run(xp: Any, *given: Any) -> None:
            if xp is np:
                by_loop(*given) if compiler() else function(np, *given)
            else:
                made.launch(xp, given)

        return run

    return decorate


def accumulator(dtype: Any) -> np.dtype:
    """The dtype to sum numbers of ``dtype`` in: float32 for float16, else itself."""
    return np.dtype(np.float32) if dtype.itemsize < 4 else dtype


def wide(x: Array) -> Array:
    """``x`` in the dtype to compute in: float16 becomes float32, all else stays as it is."""
    return x.astype(np.float32) if x.dtype.itemsize < 4 else x
